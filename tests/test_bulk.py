"""Bulk verbs over files: order, resume, refusal, and files that fail among good ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import parvae
from parvae.bulk import ERRORS_NAME, Outcome, encode_transform, plan, run, score_transform
from parvae.errors import DataError, SettingError
from parvae.files import find_files

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


def test_another_model_or_a_changed_input_is_done_anew(
    vae: parvae.VAE, folder: Path, tmp_path: Path, mixed_table: pa.Table
) -> None:
    score(vae, folder, tmp_path / "out")
    assert not any(
        outcome.skipped for outcome in score(vae, folder, tmp_path / "out", {**STAMP, "parvae.model_id": "n"})
    )
    pq.write_table(mixed_table.slice(0, 7), folder / "a.parquet")
    outcomes = score(vae, folder, tmp_path / "out", {**STAMP, "parvae.model_id": "n"})
    assert [outcome.skipped for outcome in outcomes] == [False, True, True]
    assert pq.read_metadata(tmp_path / "out" / "a.parquet").num_rows == 7


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

    def touching(table: pa.Table) -> pa.Table:
        os.utime(folder / "a.parquet", ns=(1, 1))
        return plain(table)

    (outcome,) = run([task], touching, stamp=STAMP, output=tmp_path / "out.parquet")
    assert "changed while it was read" in str(outcome.error)
    assert not (tmp_path / "out.parquet").exists()


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
