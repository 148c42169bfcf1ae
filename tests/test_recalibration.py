"""Thresholds that change after export, and graphs that do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import parvae
from parvae.bundle import read_bundle
from parvae.cli import vae as command
from parvae.errors import DataError
from parvae.recalibration import MAX_TABLE, recalibrated
from parvae.selftest import replay


def test_a_recalibrated_model_gives_the_same_scores_and_new_p_values(
    mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path
) -> None:
    rows = mixed_table.slice(0, 200)
    pq.write_table(rows, tmp_path / "rows.parquet")
    new = tmp_path / "new.vae"
    done = CliRunner().invoke(
        command, ["calibrate", str(mixed_bundle), str(tmp_path / "rows.parquet"), "-o", str(new), "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    before, after = parvae.load(mixed_bundle), parvae.load(new)
    assert said["rows"] == 200
    assert said["smallest_alpha"] == after.smallest_alpha == 1 / 201
    assert after.model_id == before.model_id == said["model_id"]
    assert after.calibration_id != before.calibration_id
    scores = after.score(rows)
    np.testing.assert_array_equal(scores.nats, before.score(rows).nats)
    np.testing.assert_allclose(np.sort(scores.p_value), np.arange(2, 202) / 201, rtol=1e-12)
    assert all(check.passed for check in replay(read_bundle(new)))


def test_a_large_sample_is_thinned_by_the_seed(mixed_bundle: Path) -> None:
    bundle = read_bundle(mixed_bundle)
    scores = np.arange(MAX_TABLE + 1_000, dtype=np.float32)
    tables = [
        read_bundle(recalibrated(bundle, scores, seed=seed)).manifest["calibration"]["scores"] for seed in (0, 0, 1)
    ]
    assert [len(table) for table in tables] == [MAX_TABLE] * 3
    assert tables[0] == tables[1] != tables[2]


def test_a_bundle_without_real_rows_still_says_so(mixed_bundle: Path) -> None:
    bundle = read_bundle(mixed_bundle)
    bundle.manifest["calibration"]["from_real_rows"] = False  # type: ignore[index]
    once = read_bundle(recalibrated(bundle, np.ones(5, np.float32)))
    twice = read_bundle(recalibrated(once, np.ones(7, np.float32)))
    for again in (once, twice):
        assert again.manifest["holds_real_rows"] is False
        assert again.manifest["calibration"]["from_real_rows"] is True
    assert twice.members["card.md"].count(b"Calibrated anew") == 1


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")]])
def test_scores_that_calibrate_nothing_are_refused(mixed_bundle: Path, scores: list[float]) -> None:
    with pytest.raises(DataError, match="calibrate on normal rows that training did not see"):
        recalibrated(read_bundle(mixed_bundle), np.array(scores, np.float32))


def test_rows_of_another_model_are_refused_by_file(mixed_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"speed": [1.0, 2.0]}), tmp_path / "other.parquet")
    done = CliRunner().invoke(
        command, ["calibrate", str(mixed_bundle), str(tmp_path / "other.parquet"), "-o", str(tmp_path / "new.vae")]
    )
    assert done.exit_code == 1
    assert "other.parquet" in done.output
    assert "lack" in done.output
    assert not (tmp_path / "new.vae").exists()
