"""The commands as a user meets them: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from conftest import DIGITS

from parvae.bundle import read_bundle
from parvae.cli import vae

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(vae, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def mixed_file(tmp_path: Path, mixed_table: pa.Table) -> Path:
    pq.write_table(mixed_table, tmp_path / "mixed.parquet", row_group_size=64)
    return tmp_path / "mixed.parquet"


def result_of(done: Result) -> dict[str, object]:
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.splitlines()[-1]))


def assert_one_sentence(done: Result, *words: str, code: int = 1) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    for word in words:
        assert word in done.output


def test_help_lists_the_verbs_of_every_room(run: Run) -> None:
    done = run("--help")
    for verb in (
        "train",
        "export",
        "score",
        "encode",
        "reconstruct",
        "sample",
        "info",
        "selftest",
        "calibrate",
        "unpack",
        "bench",
    ):
        assert f"  {verb} " in done.output
    assert run("train", "--help").exit_code == 0


def test_from_parquet_to_scores(run: Run, mixed_file: Path, tmp_path: Path, mixed_table: pa.Table) -> None:
    out = tmp_path / "run"
    settings = ("--set", "train.max_steps=40", "--set", "model.width=16", "--set", "train.threads=1")
    trained = result_of(run("train", mixed_file, "-o", out, "--label", "target", *settings, "--json"))
    assert Path(str(trained["checkpoint"])) == out / "ckpt.pt"
    exported = result_of(run("export", out / "ckpt.pt", "--unpack", tmp_path / "plain", "--json"))
    bundle = out / "model.vae"
    assert exported["bundle"] == str(bundle)
    assert (tmp_path / "plain" / "score.onnx").read_bytes() == read_bundle(bundle).members["score.onnx"]

    scored = result_of(run("score", bundle, mixed_file, "-o", tmp_path / "s.parquet", "--alpha", "0.1", "--json"))
    assert scored["rows"] == mixed_table.num_rows
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["id", "target", "score", "p_value", "is_anomaly"]
    assert table["id"].equals(mixed_table["id"])

    result_of(run("encode", bundle, mixed_file, "-o", tmp_path / "codes", "--json"))
    codes = pq.read_table(tmp_path / "codes" / "mixed.parquet")
    assert pa.types.is_fixed_size_list(codes.schema.field("code").type)
    assert codes.num_rows == mixed_table.num_rows

    result_of(run("reconstruct", bundle, mixed_file, "-o", tmp_path / "again", "--json"))
    assert pq.read_table(tmp_path / "again" / "mixed.parquet").schema.equals(mixed_table.schema)

    result_of(run("sample", bundle, "-n", "17", "-o", tmp_path / "fresh.parquet", "--seed", "3", "--json"))
    fresh = pq.read_table(tmp_path / "fresh.parquet")
    assert fresh.num_rows == 17
    assert fresh.schema.field("age").type == pa.int64()
    assert set(fresh["city"].to_pylist()) <= {"Roma", "Köln", "São Paulo", None}

    assert result_of(run("info", bundle, "--json"))["model_id"] == exported["model_id"]
    assert "embedding" in run("info", bundle).output
    assert result_of(run("selftest", bundle, "--json"))["passed"] is True


def test_the_table_of_columns_gives_roles_with_reasons(run: Run, mixed_file: Path, tmp_path: Path) -> None:
    done = run("train", mixed_file, "-o", tmp_path / "run", "--set", "train.max_steps=2", "--columns", "target:ignored")
    assert done.exit_code == 0, done.output
    assert "named by --columns" in done.output
    assert "every value is distinct" in done.output
    assert "next: vae export" in done.output


def test_resume_takes_the_settings_of_the_run(run: Run, mixed_file: Path, tmp_path: Path) -> None:
    first = result_of(run("train", mixed_file, "-o", tmp_path / "run", "--set", "train.max_steps=5", "--json"))
    again = result_of(run("train", "-o", tmp_path / "run", "--resume", "--json"))
    assert again["negative_elbo_nats"] == first["negative_elbo_nats"]
    assert_one_sentence(run("train", mixed_file, "-o", tmp_path / "run", "--resume"), "leave out the others", code=2)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("train", "nowhere.parquet", "-o", "RUN"), ("nowhere.parquet", "does not exist"), 1),
        (("train", "-o", "RUN"), ("no DATA given",), 2),
        (("train", DIGITS, "-o", "RUN", "--label", "speed"), ("no column is named 'speed'", "'digit'"), 2),
        (("train", DIGITS, "-o", "RUN", "--budget", "soon"), ("--budget soon", "10m"), 2),
        (("train", DIGITS, "-o", "RUN", "--set", "model.size=3"), ("'size'", "'width'"), 2),
        (("train", DIGITS, "-o", "RUN", "--set", "model.network=big"), ("'big'", "'table'"), 2),
        (("train", DIGITS, "-o", "RUN", "--columns", "image:picture"), ("'picture' is no role", "'image'"), 2),
        (("export", "nothing.pt"), ("nothing.pt", "cannot be opened"), 1),
        (("export", DIGITS), ("digits.parquet", "ckpt.pt"), 1),
        (("score", "no.vae", DIGITS, "-o", "OUT"), ("no.vae", "cannot be opened"), 1),
        (("selftest", DIGITS), ("digits.parquet", "bundle"), 1),
        (("info", "no.vae"), ("no.vae",), 1),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(*arguments), *words, code=code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"x": pa.array([], pa.float64())}), "0 rows"),
        (pa.table({"x": [1.5]}), "1 rows"),
        (pa.table({"x": pa.nulls(50)}), "every value is null"),
        (pa.Table.from_arrays([pa.array(np.arange(50.0))] * 2, names=["x", "x"]), "more than once"),
    ],
)
def test_data_that_cannot_be_modelled_is_named(run: Run, tmp_path: Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "data.parquet")
    assert_one_sentence(run("train", tmp_path / "data.parquet", "-o", tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


def test_a_constant_column_is_a_check(run: Run, tmp_path: Path) -> None:
    table = pa.table({"always": ["yes"] * 60})
    pq.write_table(table, tmp_path / "data.parquet")
    result_of(run("train", tmp_path / "data.parquet", "-o", tmp_path / "run", "--set", "train.max_steps=2", "--json"))


def test_infinities_and_nan_train_and_score(run: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=80)
    values[:4] = [np.nan, np.inf, -np.inf, 1e300]
    pq.write_table(pa.table({"x": values, "y": values[::-1]}), tmp_path / "data.parquet")
    settings = ("--set", "train.max_steps=20", "--set", "train.threads=1")
    trained = result_of(run("train", tmp_path / "data.parquet", "-o", tmp_path / "run", *settings, "--json"))
    assert np.isfinite(float(str(trained["negative_elbo_nats"])))
    result_of(run("export", tmp_path / "run" / "ckpt.pt", "--json"))
    result_of(
        run("score", tmp_path / "run" / "model.vae", tmp_path / "data.parquet", "-o", tmp_path / "s.parquet", "--json")
    )
    assert np.isfinite(pq.read_table(tmp_path / "s.parquet")["score"].to_numpy()).all()


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Blocked())
from parvae.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("verb", "blocked", "extra"),
    [("train", {"torch"}, "train"), ("export", {"torch", "onnx"}, "export"), ("score", {"pyarrow"}, "parquet")],
)
def test_a_verb_whose_extra_is_missing_says_what_to_install(
    verb: str, blocked: set[str], extra: str, tmp_path: Path, mixed_bundle: Path
) -> None:
    arguments = {
        "train": [str(DIGITS), "-o", str(tmp_path / "run")],
        "export": [str(tmp_path / "ckpt.pt")],
        "score": [str(mixed_bundle), str(DIGITS), "-o", str(tmp_path / "s.parquet")],
    }[verb]
    command = [sys.executable, "-c", BLOCK.format(blocked=blocked), verb, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install 'parvae[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_vae_export_is_the_verb_export(mixed_run: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("vae-export")
    done = subprocess.run([script, "--help"], check=True, capture_output=True, text=True)
    assert "Usage: vae-export [OPTIONS] CHECKPOINT" in done.stdout
    failed = subprocess.run([script, tmp_path / "no.pt"], check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "cannot be opened" in failed.stderr
