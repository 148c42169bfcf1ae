"""Bulk verbs over files: order, resume, refusal, and files that fail among good ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import parvae
from parvae import stream
from parvae.bulk import ERRORS_NAME, Outcome, attempt, encode_transform, plan, run, score_transform
from parvae.cli import vae as cli
from parvae.errors import DataError, SettingError
from parvae.files import find_files
from parvae.schema import NumericFacts
from parvae.tally import Tally, drift, drift_nats

STAMP = {"parvae.verb": "score", "parvae.model_id": "m"}


@pytest.fixture
def vae(mixed_bundle: Path) -> parvae.VAE:
    return parvae.load(mixed_bundle)


@pytest.fixture
def folder(tmp_path: Path, mixed_table: pa.Table) -> Path:
    """Three files, one of them deeper, with rows in known order."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.parquet", "b.parquet", "deep/a.parquet")):
        pq.write_table(mixed_table.slice(100 * index, 100), tmp_path / "in" / name, row_group_size=30)
    return tmp_path / "in"


def score(vae: parvae.VAE, folder: Path, output: Path, stamp: dict[str, str] = STAMP) -> list[Outcome]:
    tasks = plan(find_files([str(folder)]), output)
    return list(run(tasks, score_transform(vae, alpha=0.1), stamp=stamp, output=output))


def test_every_input_gets_its_output_with_the_same_rows(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    outcomes = score(vae, folder, tmp_path / "out")
    assert [outcome.num_rows for outcome in outcomes] == [100, 100, 100]
    wanted = vae.score(mixed_table)
    for index, name in enumerate(("a.parquet", "b.parquet", "deep/a.parquet")):
        table = pq.read_table(tmp_path / "out" / name)
        rows = slice(100 * index, 100 * index + 100)
        assert table["id"].to_pylist() == mixed_table["id"].to_pylist()[rows]
        np.testing.assert_allclose(table["score"].to_numpy(), wanted.nats[rows], rtol=1e-4, atol=1e-3)
        assert table["is_anomaly"].to_pylist() == (wanted.p_value[rows] <= 0.1).tolist()
    assert not (tmp_path / "out" / ERRORS_NAME).exists()


def test_a_second_run_does_only_what_is_missing(vae: parvae.VAE, folder: Path, tmp_path: Path) -> None:
    score(vae, folder, tmp_path / "out")
    kept = (tmp_path / "out" / "a.parquet").stat().st_mtime_ns
    (tmp_path / "out" / "b.parquet").unlink()
    outcomes = {outcome.task.file.relative_path: outcome for outcome in score(vae, folder, tmp_path / "out")}
    assert outcomes["a.parquet"].skipped
    assert outcomes["a.parquet"].num_rows == 100
    assert not outcomes["b.parquet"].skipped
    assert (tmp_path / "out" / "a.parquet").stat().st_mtime_ns == kept


def test_other_settings_or_a_changed_input_are_done_anew(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    score(vae, folder, tmp_path / "out")
    others = {**STAMP, "parvae.settings": "alpha=0.2"}
    assert not any(outcome.skipped for outcome in score(vae, folder, tmp_path / "out", others))
    pq.write_table(mixed_table.slice(0, 7), folder / "a.parquet")
    outcomes = {outcome.task.file.relative_path: outcome for outcome in score(vae, folder, tmp_path / "out", others)}
    assert {name: outcome.skipped for name, outcome in outcomes.items()} == {
        "a.parquet": False,
        "b.parquet": True,
        "deep/a.parquet": True,
    }
    assert pq.read_metadata(tmp_path / "out" / "a.parquet").num_rows == 7


def test_results_of_another_model_are_never_overwritten(vae: parvae.VAE, folder: Path, tmp_path: Path) -> None:
    score(vae, folder, tmp_path / "out")
    before = (tmp_path / "out" / "b.parquet").read_bytes()
    (tmp_path / "out" / "a.parquet").unlink()
    with pytest.raises(SettingError, match=r"results of model 'm', not of 'n'.*another place"):
        score(vae, folder, tmp_path / "out", {**STAMP, "parvae.model_id": "n"})
    with pytest.raises(SettingError, match=r"results of verb 'score', not of 'encode'"):
        score(vae, folder, tmp_path / "out", {**STAMP, "parvae.verb": "encode"})
    assert not (tmp_path / "out" / "a.parquet").exists()
    assert (tmp_path / "out" / "b.parquet").read_bytes() == before


@pytest.mark.parametrize("content", ["parquet", "text"])
def test_a_file_that_is_no_output_is_never_overwritten(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table, content: str
) -> None:
    mine = tmp_path / "out" / "a.parquet"
    mine.parent.mkdir()
    if content == "parquet":
        pq.write_table(mixed_table, mine)
    else:
        mine.write_text("notes")
    before = mine.read_bytes()
    with pytest.raises(SettingError, match=r"a\.parquet is in the way and no output of vae"):
        score(vae, folder, tmp_path / "out")
    assert mine.read_bytes() == before


def test_outputs_keep_the_row_groups_and_do_not_depend_on_the_threads(
    vae: parvae.VAE, tmp_path: Path, mixed_table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 256)
    pq.write_table(pa.concat_tables([mixed_table] * 5), tmp_path / "in.parquet", row_group_size=700)
    files = find_files([str(tmp_path / "in.parquet")])
    outputs = []
    for threads in (1, 3):
        output = tmp_path / f"{threads}.parquet"
        transform = score_transform(vae, alpha=0.1)
        (outcome,) = run(plan(files, output), transform, stamp=STAMP, output=output, threads=threads)
        assert outcome.num_rows == outcome.tally.num_rows == 2000
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]
    footer = pq.read_metadata(tmp_path / "1.parquet")
    assert [footer.row_group(index).num_rows for index in range(footer.num_row_groups)] == [700, 700, 600]
    assert pq.read_table(tmp_path / "1.parquet")["id"].to_pylist() == mixed_table["id"].to_pylist() * 5


def test_what_was_counted_comes_from_the_rows_and_survives_in_the_output(
    vae: parvae.VAE, tmp_path: Path, mixed_table: pa.Table
) -> None:
    cities = pa.array(["Atlantis"] * 30 + mixed_table["city"].to_pylist()[30:])
    incomes = pa.array([1e9] * 20 + [None] * 5 + mixed_table["income"].to_pylist()[25:])
    table = mixed_table.set_column(mixed_table.column_names.index("city"), "city", cities)
    table = table.set_column(table.column_names.index("income"), "income", incomes)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=150)
    (first,) = score(vae, tmp_path / "in.parquet", tmp_path / "out.parquet")
    (second,) = score(vae, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert second.skipped
    assert second.tally == first.tally
    scores = vae.score(table)
    assert first.tally.num_flagged == int(scores.is_anomaly(0.1).sum())
    columns = first.tally.columns
    assert (columns["city"].num_unseen, columns["city"].num_nulls) == (30, cities.null_count)
    assert (columns["income"].num_unseen, columns["income"].num_nulls) == (20, 5)
    assert columns["age"].num_nulls == mixed_table["age"].null_count
    assert columns["member"].total == sum(mixed_table["member"].to_pylist())
    for index, name in enumerate(vae.parts[:-1]):
        assert columns[name].nats == pytest.approx(float(scores.contributions[:, index].sum()), rel=1e-3)
    income = vae.schema["income"].facts_as(NumericFacts)
    known = [value for value in incomes.to_pylist() if value is not None]
    drifted = drift(vae.schema["income"], columns["income"])
    assert drifted == pytest.approx((np.mean(known) - income.mean) / income.stddev)
    assert drift(vae.schema["city"], columns["city"]) is None
    above = drift_nats(vae.schema["city"], columns["city"], 400, vae.manifest["metrics"])
    assert above is not None
    assert above > 0.1


def test_rows_like_those_of_training_do_not_drift(vae: parvae.VAE, tmp_path: Path, mixed_table: pa.Table) -> None:
    pq.write_table(mixed_table, tmp_path / "in.parquet")
    (outcome,) = score(vae, tmp_path / "in.parquet", tmp_path / "out.parquet")
    for name in ("age", "income", "member", "embedding"):
        assert drift(vae.schema[name], outcome.tally.columns[name]) == pytest.approx(0, abs=1e-6)
    assert all(counts.num_unseen == 0 for counts in outcome.tally.columns.values())


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    mixed_bundle: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        pq.write_table(pa.concat_tables([mixed_table] * 100), tmp_path / "in" / f"{index}.parquet")
    # What a full disk does to a process: writes beyond a limit fail with an error of the system.
    script = (
        "import resource, signal, sys; from parvae.cli import vae; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); vae(sys.argv[1:], prog_name='vae')"
    )
    arguments = ["score", str(mixed_bundle), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--alpha", "0.1"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0, again.output
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_a_model_of_other_columns_fails_every_file_by_name(digits_bundle: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["score", str(digits_bundle), str(folder), "-o", str(tmp_path / "out"), "--alpha", "0.5"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    entries = [json.loads(line) for line in (tmp_path / "out" / ERRORS_NAME).read_text().splitlines()]
    assert len(entries) == 3
    assert all(re.search(r"the rows lack .*which the model needs", entry["error"]) for entry in entries)


def test_a_folder_killed_midway_and_run_again_equals_one_that_was_not(
    mixed_bundle: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    (tmp_path / "in").mkdir()
    table = pa.concat_tables([mixed_table] * 20)
    for index in range(20):
        pq.write_table(table.slice(400 * index), tmp_path / "in" / f"{index:02d}.parquet", row_group_size=1000)
    out = tmp_path / "out"
    arguments = ["score", str(mixed_bundle), str(tmp_path / "in"), "-o", str(out), "--alpha", "0.1", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "parvae", *arguments], stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 120
    while len(list(out.glob("*.parquet"))) < 5 and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.001)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 5 <= len(kept) < 20
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["files"], result["already_done"], result["rows"]) == (20, len(kept), 20 * 8000 - 400 * 190)
    assert all((out / name).stat().st_mtime_ns == modified_ns for name, modified_ns in kept.items())
    whole = tmp_path / "whole"
    CliRunner().invoke(cli, [*arguments[:4], str(whole), *arguments[5:]])
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_bad_files_are_listed_and_the_rest_is_finished(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no Parquet file")
    pq.write_table(mixed_table.drop_columns(["age"]), folder / "lacks.parquet")
    content = bytearray((folder / "b.parquet").read_bytes())
    content[200:600] = bytes(400)
    (folder / "damaged.parquet").write_bytes(bytes(content))
    outcomes = score(vae, folder, tmp_path / "out")
    failed = {outcome.task.file.relative_path for outcome in outcomes if outcome.error}
    assert failed == {"broken.parquet", "damaged.parquet", "lacks.parquet"}
    entries = [json.loads(line) for line in (tmp_path / "out" / ERRORS_NAME).read_text().splitlines()]
    assert {Path(entry["path"]).name for entry in entries} == failed
    assert any("'age'" in entry["error"] for entry in entries)
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"a.parquet", "b.parquet", ERRORS_NAME}
    for name in failed:
        (folder / name).unlink()
    score(vae, folder, tmp_path / "out")
    assert not (tmp_path / "out" / ERRORS_NAME).exists()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs the users of POSIX")
def test_a_file_that_may_not_be_read_is_an_outcome_that_names_it(vae: parvae.VAE, mixed_table: pa.Table) -> None:
    me, transform = os.geteuid(), score_transform(vae, alpha=None)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to other users
        path = Path(folder) / "closed.parquet"
        pq.write_table(mixed_table, path)
        (task,) = plan(find_files([str(path)]), Path(folder) / "out.parquet")
        Path(folder).chmod(0o777)
        path.chmod(0)
        try:
            if me == 0:
                os.seteuid(65534)  # root may read everything
            outcome = attempt(task, transform, stamp=STAMP)
        finally:
            os.seteuid(me)
        assert re.search(rf"{path} cannot be read as Parquet .*Permission denied", str(outcome.error))
        assert not task.output.exists()


def test_a_run_that_is_given_up_leaves_whole_outputs_and_the_next_one_makes_the_others(
    vae: parvae.VAE, tmp_path: Path, mixed_table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 256)
    for name in "abcdef":
        pq.write_table(pa.concat_tables([mixed_table] * 5), tmp_path / f"{name}.parquet")
    files = find_files([str(tmp_path / f"{name}.parquet") for name in "abcdef"])
    transform = score_transform(vae, alpha=0.1)
    tasks, output = plan(files, tmp_path / "out"), tmp_path / "out"
    outcomes = run(tasks, transform, stamp=STAMP, output=output, threads=2)
    first = next(outcomes)
    assert first.task.file.relative_path.endswith("a.parquet")
    outcomes.close()
    there = sorted(path.name for path in output.rglob("*") if path.is_file())
    assert "a.parquet" in there
    assert len(there) < 6
    assert all(pq.read_metadata(path).num_rows == 2000 for path in output.rglob("*.parquet"))
    assert not [name for name in there if name.endswith(".tmp")]
    again = list(run(tasks, transform, stamp=STAMP, output=output, threads=2))
    assert [outcome.task.file.relative_path[-9:] for outcome in again] == [f"{name}.parquet" for name in "abcdef"]
    assert sum(outcome.skipped for outcome in again) == len(there)


def test_an_empty_file_gives_an_empty_file(vae: parvae.VAE, tmp_path: Path, mixed_table: pa.Table) -> None:
    pq.write_table(mixed_table.slice(0, 0), tmp_path / "empty.parquet")
    files = find_files([str(tmp_path / "empty.parquet")])
    for transform in (score_transform(vae, alpha=None), encode_transform(vae)):
        output = tmp_path / f"{id(transform)}.parquet"
        (outcome,) = run(plan(files, output), transform, stamp=STAMP, output=output)
        assert outcome.error is None
        assert pq.read_table(output).num_rows == 0


def test_a_file_that_changes_while_it_is_read_fails(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    (task,) = plan(find_files([str(folder / "a.parquet")]), tmp_path / "out.parquet")
    plain = score_transform(vae, alpha=None)

    def touching(table: pa.Table) -> tuple[pa.Table, Tally]:
        os.utime(folder / "a.parquet", ns=(1, 1))
        return plain(table)

    (outcome,) = run([task], touching, stamp=STAMP, output=tmp_path / "out.parquet")
    assert "changed since the data set was planned" in str(outcome.error)
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_that_changed_since_it_was_found_fails(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    tasks = plan(find_files([str(folder)]), tmp_path / "out")
    pq.write_table(mixed_table, folder / "a.parquet")
    (folder / "b.parquet").unlink()
    outcomes = list(run(tasks, score_transform(vae, alpha=None), stamp=STAMP, output=tmp_path / "out"))
    assert "a.parquet changed since" in str(outcomes[0].error)
    assert "b.parquet is gone since" in str(outcomes[1].error)
    assert outcomes[2].error is None


def test_outputs_never_overwrite_inputs_or_each_other(folder: Path, tmp_path: Path) -> None:
    files = find_files([str(folder)])
    with pytest.raises(SettingError, match="one of the inputs"):
        plan(files, folder)
    with pytest.raises(SettingError, match="there are 3 inputs"):
        plan(files, tmp_path / "one.parquet")
    with pytest.raises(SettingError, match="would both write"):
        plan(find_files([str(folder / "a.parquet"), str(folder / "deep" / "a.parquet")]), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="is a file"):
        plan(files, tmp_path / "file")


def test_a_column_that_the_output_needs_is_refused(vae: parvae.VAE, mixed_table: pa.Table) -> None:
    table = mixed_table.append_column("score", mixed_table["income"])
    with pytest.raises(DataError, match=r"'score'.*rename"):
        score_transform(vae, alpha=None)(table)
