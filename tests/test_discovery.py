"""`vae score --fdr`: rows of a file flagged so that few of them are false alarms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import parvae
from parvae.cli import vae as cli
from parvae.conformal import discoveries
from parvae.discovery import mark_discoveries
from parvae.stream import TALLY_KEY
from parvae.tally import Tally


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--json"])


def scored(path: Path, p_values: list[list[float]]) -> Path:
    """A file of scores with these row groups."""
    table = pa.table({"id": range(sum(map(len, p_values))), "p_value": np.concatenate(p_values)})
    with pq.ParquetWriter(path, table.schema.with_metadata({"parvae.model_id": "m"})) as writer:
        first = 0
        for group in p_values:
            writer.write_table(table.slice(first, len(group)))
            first += len(group)
        writer.add_key_value_metadata({TALLY_KEY: Tally(num_rows=first).to_text()})
    return path


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_the_rows_flagged_are_those_of_the_library(tmp_path: Path, rate: float) -> None:
    rng = np.random.default_rng(0)
    groups = [np.minimum(1.0, rng.integers(1, 102, size) / 101 * rng.choice([0.05, 1.0], size)) for size in (70, 1, 30)]
    path = scored(tmp_path / "scores.parquet", [group.tolist() for group in groups])
    counts = mark_discoveries(path, Tally(num_rows=101), rate)
    wanted = discoveries(np.concatenate(groups), rate)
    table = pq.read_table(path)
    np.testing.assert_array_equal(table["is_anomaly"].to_numpy(), wanted)
    assert table["id"].to_pylist() == list(range(101))
    assert counts.num_flagged == wanted.sum() > 0
    footer = pq.read_metadata(path)
    assert footer.num_row_groups == 3
    assert footer.metadata[b"parvae.model_id"] == b"m"
    assert Tally.from_text(footer.metadata[TALLY_KEY.encode()].decode()) == counts
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.parquet"]


def test_the_verb_flags_discoveries_and_counts_them(mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path) -> None:
    odd = mixed_table.slice(0, 30).set_column(2, "income", pa.array(np.full(30, 900_000.0)))
    pq.write_table(pa.concat_tables([odd, mixed_table.slice(30, 100)]), tmp_path / "rows.parquet", row_group_size=50)
    output = tmp_path / "scores.parquet"
    done = invoke("score", mixed_bundle, tmp_path / "rows.parquet", "-o", output, "--fdr", 0.2)
    assert done.exit_code == 0, done.output
    table = pq.read_table(output)
    flags = table["is_anomaly"].to_numpy()
    np.testing.assert_array_equal(flags, discoveries(table["p_value"].to_numpy(), 0.2))
    assert flags[:30].all()
    assert json.loads(done.stdout.splitlines()[-1])["flagged"] == flags.sum()
    again = json.loads(invoke("score", mixed_bundle, tmp_path / "rows.parquet", "-o", output, "--fdr", 0.2).stdout)
    assert again["already_done"] == 1
    assert again["flagged"] == flags.sum()
    other = json.loads(invoke("score", mixed_bundle, tmp_path / "rows.parquet", "-o", output, "--fdr", 0.1).stdout)
    assert other["already_done"] == 0


def test_a_file_without_rows_has_no_discoveries(mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(mixed_table.slice(0, 0), tmp_path / "rows.parquet")
    done = invoke("score", mixed_bundle, tmp_path / "rows.parquet", "-o", tmp_path / "scores.parquet", "--fdr", 0.2)
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.num_rows == 0
    assert "is_anomaly" in table.column_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fdr", "0"], "--fdr is 0.0; it must lie between 0 and 1"),
        (["--fdr", "1.5"], "--fdr is 1.5; it must lie between 0 and 1"),
        (["--fdr", "0.1", "--alpha", "0.05"], "give --alpha or --fdr"),
        (["--explain", "-1"], "--explain"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_written(
    mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path, options: list[str], message: str
) -> None:
    pq.write_table(mixed_table, tmp_path / "rows.parquet")
    done = invoke("score", mixed_bundle, tmp_path / "rows.parquet", "-o", tmp_path / "out.parquet", *options)
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert not (tmp_path / "out.parquet").exists()


def test_the_share_of_false_alarms_is_what_was_asked_for(mixed_bundle: Path) -> None:
    calibration = parvae.load(mixed_bundle)._calibration
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        normal = calibration.p_value(rng.choice(calibration.scores, 200))
        p_values = np.concatenate([normal, np.full(50, 1 / (1 + len(calibration.scores)))])
        found = discoveries(p_values, 0.2)
        shares.append(found[:200].sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.2 + 0.02
