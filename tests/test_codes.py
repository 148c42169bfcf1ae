"""Codes of one byte a number: near the float codes, the same for everybody, and never of a bundle without a grid."""

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
from parvae.bulk import GRID_KEY
from parvae.cli import vae as cli
from parvae.codes import LARGEST, NOISE_SHARE, CodeGrid


def test_rounding_adds_the_share_of_the_posterior_noise_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    stddevs = np.tile(np.array([0.1, 0.5, 1.0], np.float32), (20_000, 1))
    means = rng.normal(size=stddevs.shape).astype(np.float32)
    grid = CodeGrid.fit(means, stddevs)
    error = grid.restored(grid.quantised(means)) - means
    assert np.abs(error).max() <= 0.5001 * grid.steps.max()
    np.testing.assert_allclose(error.std(axis=0), NOISE_SHARE * stddevs[0], rtol=0.03)


def test_a_posterior_that_is_narrow_or_a_point_still_fits_into_a_byte() -> None:
    means = np.linspace(-50, 50, 1001, dtype=np.float32)[:, None] * np.array([1, 0.5, 0], np.float32)
    grid = CodeGrid.fit(means, np.array([[1e-3, 0.0, 0.0]], np.float32))
    codes = grid.quantised(means)
    assert codes.dtype == np.int8
    assert int(codes.max()) == -int(codes.min()) == LARGEST
    assert np.abs(grid.restored(codes) - means).max() <= 0.5001 * grid.steps.max()


def test_what_lies_outside_goes_to_the_end_of_the_grid() -> None:
    grid = CodeGrid(steps=np.array([0.1], np.float32))
    np.testing.assert_array_equal(grid.quantised(np.array([[1e9], [-1e9]], np.float32)), [[LARGEST], [-LARGEST]])


def test_encode_int8_writes_the_codes_on_the_grid_of_the_bundle(
    mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(mixed_table.slice(0, 200), tmp_path / "rows.parquet")
    output = tmp_path / "codes.parquet"
    arguments = ["encode", str(mixed_bundle), str(tmp_path / "rows.parquet"), "-o", str(output), "--int8"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    vae = parvae.load(mixed_bundle)
    table = pq.read_table(output)
    assert table.schema.field("code").type == pa.list_(pa.int8(), vae.latent_size)
    codes = np.array(table["code"].to_pylist(), np.int8)
    means = vae.encode(mixed_table.slice(0, 200))
    np.testing.assert_array_equal(codes, vae.code_grid.quantised(means))
    assert np.corrcoef(vae.code_grid.restored(codes).ravel(), means.ravel())[0, 1] > 0.9
    assert json.loads(table.schema.field("code").metadata[GRID_KEY.encode()]) == vae.code_grid.to_json()
    assert table["id"].to_pylist() == mixed_table["id"].to_pylist()[:200]


def test_a_bundle_without_a_grid_says_what_to_do() -> None:
    old = parvae.load(ROOT / "tests" / "golden" / "format-1.vae")
    with pytest.raises(parvae.BundleError, match="export it anew"):
        _ = old.code_grid
