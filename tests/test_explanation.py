"""`vae score --explain`: the columns most to blame, with what was observed and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT

import parvae
from parvae.cli import vae as cli
from parvae.explanation import explanations

DENOISING = ROOT / "tests" / "golden" / "format-2.vae"
ROWS = pa.table(
    {
        "id": [1, 2, 3],
        "age": pa.array([40, 40, None], pa.int64()),
        "income": [31_000.0, 75_000.0, 31_000.0],
        "spent": [200.0, 200.0, 200.0],
        "city": ["Köln", "Köln", "Atlantis"],
        "member": [True, True, True],
    }
)


@pytest.fixture(scope="module")
def vae() -> parvae.VAE:
    return parvae.load(DENOISING)


def test_the_column_at_fault_comes_first_with_what_the_others_let_expect(vae: parvae.VAE) -> None:
    scores = vae.score(ROWS)
    explained = explanations(vae.schema, ROWS, scores, 2).to_pylist()
    assert [len(row) for row in explained] == [2, 2, 2]
    income, unseen = explained[1][0], explained[2][0]
    assert (income["column"], income["observed"]) == ("income", "75000")
    # The age and the city of the row belong to an income near 30,000; its own does not count.
    assert float(income["expected"]) == pytest.approx(30_000, rel=0.15)
    assert income["nats"] == pytest.approx(scores.blame()[1].max())
    assert (unseen["column"], unseen["observed"]) == ("city", "Atlantis")
    assert unseen["expected"] in ("Köln", "Roma", "São Paulo")


def test_nulls_stay_null_and_more_columns_than_there_are_give_all(vae: parvae.VAE) -> None:
    explained = explanations(vae.schema, ROWS, vae.score(ROWS), 99).to_pylist()
    assert sorted(entry["column"] for entry in explained[2]) == ["age", "city", "income", "member", "spent"]
    assert {entry["column"]: entry["observed"] for entry in explained[2]}["age"] is None
    nats = [entry["nats"] for entry in explained[0]]
    assert nats == sorted(nats, reverse=True)


def test_what_is_expected_of_a_column_does_not_depend_on_its_own_value(vae: parvae.VAE) -> None:
    expected = vae.expect(ROWS)
    assert expected["id"].to_pylist() == [1, 2, 3]
    assert expected["income"][0] == expected["income"][1]
    assert vae.reconstruct(ROWS)["income"][0] != vae.reconstruct(ROWS)["income"][1]


def test_a_model_that_hides_nothing_expects_its_reconstruction(mixed_bundle: Path, mixed_table: pa.Table) -> None:
    vae, rows = parvae.load(mixed_bundle), mixed_table.slice(0, 20)
    assert vae.expect(rows).equals(vae.reconstruct(rows))
    assert vae.score(rows).expected.equals(vae.reconstruct(rows))
    explained = explanations(vae.schema, rows, vae.score(rows), 7).to_pylist()
    vector = next(entry for entry in explained[0] if entry["column"] == "embedding")
    assert vector["observed"] is vector["expected"] is None
    np.testing.assert_allclose(
        [sum(entry["nats"] for entry in row) for row in explained], vae.score(rows).blame().sum(axis=1), rtol=1e-4
    )


def test_many_rows_are_expected_in_chunks(vae: parvae.VAE) -> None:
    many = {name: np.resize(ROWS[name].to_numpy(zero_copy_only=False), 3_000) for name in ("income", "spent")}
    many |= {"age": np.resize([40, 41, 42], 3_000), "city": np.resize(np.array(["Köln"]), 3_000)}
    many["member"] = np.resize([True], 3_000)
    expected = vae.expect(many)
    assert len(expected["income"]) == 3_000
    np.testing.assert_allclose(expected["income"][:3], expected["income"][2_997:], rtol=1e-5)


def test_the_verb_writes_explanations(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "rows.parquet")
    output = tmp_path / "scores.parquet"
    arguments = ["score", str(DENOISING), str(tmp_path / "rows.parquet"), "-o", str(output), "--json"]
    done = CliRunner().invoke(cli, [*arguments, "--explain", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 3
    table = pq.read_table(output)
    assert [row[0]["column"] for row in table["explanation"].to_pylist()][1:] == ["income", "city"]
    assert CliRunner().invoke(cli, [*arguments]).exit_code == 0
    assert "explanation" not in pq.read_table(output).column_names
