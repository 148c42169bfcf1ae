"""Compressed files: every value comes back as promised, and damage is an error or whole blocks, never a wrong value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import parvae
from parvae.cli import vae
from parvae.vaez.bins import fit_bins, levels_of, tables_from
from parvae.vaez.block import encode_block
from parvae.vaez.bounds import Bound
from parvae.vaez.columns import Numbers

GOLDEN = ROOT / "tests" / "golden" / "format-1.vaez"
DTYPES = ["?", "i1", "u1", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def golden_rows() -> dict[str, Any]:
    row = np.arange(60)
    price = row / 4.0
    price[[3, 7, 11]] = [np.nan, -np.inf, -0.0]
    return {
        "id": row + 1_000_000,
        "price": price,
        "noise": (row * 37 % 61 / 61).astype("f4"),
        "city": np.array(["Köln", None, "Roma"] * 20, dtype=object),
        "member": row % 3 == 0,
        "age": np.ma.MaskedArray(row % 40, mask=row % 7 == 0),
        "day": np.datetime64("2024-02-27") + row,
        "pixels": (np.outer(row, [0, 1, 2]) % 256).astype("u1"),
    }


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, NaN patterns, signs of zero and nulls included."""
    if isinstance(first, np.ma.MaskedArray) or isinstance(second, np.ma.MaskedArray):
        masks = [np.ma.getmaskarray(array) for array in (first, second)]
        return bool(np.array_equal(*masks)) and same(np.ma.getdata(first)[~masks[0]], np.ma.getdata(second)[~masks[0]])
    if first.dtype == object or second.dtype == object:
        return bool(first.tolist() == second.tolist())
    return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())


def assert_same_rows(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    assert [name for name in wanted if not same(found[name], wanted[name])] == []


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_any_array_comes_back_bit_by_bit(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(0, 40))
    rows = {
        "first": data.draw(hnp.arrays(data.draw(st.sampled_from(DTYPES)), num_rows)),
        "second": data.draw(hnp.arrays(data.draw(st.sampled_from(DTYPES)), (num_rows, 3))),
        "third": np.array(
            [*data.draw(st.lists(st.none() | st.text(), min_size=num_rows, max_size=num_rows)), 0], object
        )[:-1],
        "fourth": np.ma.MaskedArray(np.arange(num_rows), mask=data.draw(hnp.arrays("?", num_rows))),
    }
    assert_same_rows(parvae.decompress(parvae.compress(rows, block_rows=17)), rows)


@given(
    values=hnp.arrays(st.sampled_from(["f4", "f8"]), st.integers(1, 60)),
    bound=st.sampled_from(["abs:0.01", "abs:1e-300", "abs:1e30", "pw:1e-3", "pw:0.4", "digits:3", "rel:0.01"]),
)
@settings(deadline=None, max_examples=200)
def test_every_float_is_within_its_bound(values: Any, bound: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        found = parvae.decompress(parvae.compress({"x": values}, bounds={"x": bound}))["x"]
        kind, _, figure = bound.partition(":")
        x, y = values.astype("f8"), found.astype("f8")
        finite = x[np.isfinite(x)]
        width = float(finite.max() - finite.min()) if finite.size else 0.0
        reach = {
            "abs": float(figure),
            "rel": float(figure) * width if np.isfinite(width) else 0.0,
            "pw": float(figure) * np.abs(x),
            "digits": 0.5 * 10.0 ** -float(figure) * np.abs(x),
        }[kind]
        special = ~np.isfinite(x) | ((x == 0) & np.signbit(x))
        exact = values.view(f"u{values.dtype.itemsize}") == found.view(f"u{values.dtype.itemsize}")
        assert np.all(exact | (~special & (np.abs(x - y) <= reach)))


@given(
    values=hnp.arrays(st.sampled_from(["i1", "u1", "i4", "u8", "i8"]), st.integers(1, 50)), reach=st.integers(1, 1000)
)
@settings(deadline=None)
def test_every_integer_is_within_its_bound(values: Any, reach: int) -> None:
    found = parvae.decompress(parvae.compress({"x": values}, bounds={"x": reach}))["x"]
    assert found.dtype == values.dtype
    assert all(abs(int(x) - int(y)) <= reach for x, y in zip(values, found, strict=True))


def test_a_bound_makes_a_column_smaller() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    exact = len(parvae.compress({"x": values}))
    assert len(parvae.compress({"x": values}, bounds={"x": 0.01})) < exact / 4
    assert len(parvae.compress({"x": values}, bounds={"*": "digits:3"})) < exact / 2


def test_a_column_that_follows_from_another_costs_almost_nothing() -> None:
    levels = np.random.default_rng(0).integers(0, 16, 30_000)
    alone = len(parvae.compress({"code": levels}))
    both = len(parvae.compress({"code": levels, "twice": 3 * levels}))
    assert both < alone + 300


def test_noise_is_never_larger_than_plain_and_a_thousandth() -> None:
    noise = np.random.default_rng(0).integers(0, 2**63, 10_000)
    assert len(parvae.compress({"x": noise})) < noise.nbytes * 1.001 + 600


def test_a_block_is_never_larger_than_its_plain_form() -> None:
    for values in (np.arange(1.0), np.random.default_rng(0).normal(size=300)):
        column = Numbers(values=values)
        assert len(encode_block([column], [Bound()], 0)) <= len(encode_block([column], [Bound()], 0, effort=0))


def test_blocks_and_columns_are_read_alone() -> None:
    rows = golden_rows()
    blob = parvae.compress(rows, block_rows=20)
    found = parvae.decompress(blob, columns=["city", "price"], blocks=[2])
    assert_same_rows(found, {name: rows[name][40:] for name in ("city", "price")})
    for name in rows:
        assert_same_rows(parvae.decompress(blob, columns=[name]), {name: rows[name]})
    with pytest.raises(parvae.DataError, match="no column 'town'"):
        parvae.decompress(blob, columns=["town"])
    with pytest.raises(parvae.DataError, match="no block 3"):
        parvae.decompress(blob, blocks=[3])


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_a_flip_of_any_byte_is_an_error_or_leaves_whole_blocks(bit: int) -> None:
    rows = {name: golden_rows()[name] for name in ("price", "city", "age")}
    blob = parvae.compress(rows, block_rows=30)
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= bit
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged))
        assert_salvaged(bytes(damaged), rows)


def test_a_file_cut_anywhere_is_an_error_or_leaves_whole_blocks() -> None:
    rows = {name: golden_rows()[name] for name in ("price", "city", "age")}
    blob = parvae.compress(rows, block_rows=30)
    for size in range(len(blob)):
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(blob[:size])
        assert_salvaged(blob[:size], rows)
    assert_salvaged(blob[:-30], rows, num_rows=60)


def test_sampled_flips_of_a_large_file_are_errors() -> None:
    rng = np.random.default_rng(0)
    blob = parvae.compress({"a": rng.normal(size=20_000).round(2), "b": rng.integers(0, 9, 20_000)})
    for position in rng.integers(0, len(blob), 60):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged))


def assert_salvaged(blob: bytes, rows: dict[str, Any], num_rows: int | None = None) -> None:
    """What salvage gives are whole blocks of 30 rows, each as it was."""
    try:
        found = parvae.decompress(blob, salvage=True)
    except parvae.CorruptFileError:
        assert num_rows is None
        return
    length = len(found["price"])
    assert length in (0, 30, 60)
    assert num_rows in (None, length)
    first = 30 if length == 30 and same(found["price"], rows["price"][30:]) else 0
    wanted = {name: values[first : first + length] for name, values in rows.items()}
    assert [name for name in rows if length and not same(found[name], wanted[name])] == []


def test_the_golden_file_decodes_for_ever() -> None:
    assert_same_rows(parvae.decompress(GOLDEN.read_bytes()), golden_rows())


def arrow_table() -> pa.Table:
    return pa.table(
        {
            "text": pa.array(["a", None, "ü", ""] * 5),
            "raw": pa.array([b"\0", None, b"", b"x"] * 5),
            "dict": pa.array(["u", "v", None, "u"] * 5).dictionary_encode(),
            "time": pa.array([0, None, 5, -7] * 5, pa.timestamp("us", tz="UTC")),
            "date": pa.array([0, 1, None, 3] * 5, pa.date32()),
            "decimal": pa.array([1, None, 2, 3] * 5, pa.decimal128(7, 2)),
            "list": pa.array([[1, 2], None, [], [3]] * 5),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype="f4")), 3),
            "half": pa.array(np.arange(20, dtype="f2")),
            "flag": pa.array([True, None, False, True] * 5),
            "null": pa.nulls(20),
            "small": pa.array([1, None, 3, 4] * 5, pa.uint8()),
        }
    )


@pytest.mark.parametrize("num_rows", [0, 1, 20])
def test_every_arrow_type_comes_back(num_rows: int) -> None:
    table = arrow_table().slice(0, num_rows)
    found = parvae.decompress(parvae.compress(table, block_rows=8))
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found.to_pylist() == table.to_pylist()


def test_the_verbs_write_read_and_describe(tmp_path: Path) -> None:
    source, packed, back = tmp_path / "in.parquet", tmp_path / "x.vaez", tmp_path / "back.parquet"
    table = arrow_table().append_column("x", pa.array(np.linspace(0, 1, 20)))
    pq.write_table(table, source)
    run = CliRunner()
    done = run.invoke(vae, ["compress", str(source), "-o", str(packed), "--bound", "x=rel:0.05", "--verify", "--json"])
    assert done.exit_code == 0, done.output
    assert '"verified": true' in done.output
    done = run.invoke(vae, ["decompress", str(packed), "-o", str(back)])
    assert done.exit_code == 0, done.output
    found = pq.read_table(back)
    assert found.drop_columns("x").to_pylist() == table.drop_columns("x").to_pylist()
    assert np.abs(found["x"].to_numpy() - table["x"].to_numpy()).max() <= 0.05
    assert "x: double (abs:0.05)" in run.invoke(vae, ["info", str(packed)]).output
    packed.write_bytes(packed.read_bytes()[:-40])
    failed = run.invoke(vae, ["decompress", str(packed), "-o", str(tmp_path / "no.parquet")])
    assert failed.exit_code == 1
    assert not (tmp_path / "no.parquet").exists()
    assert run.invoke(vae, ["decompress", str(packed), "-o", str(back), "--salvage"]).exit_code == 0


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"y": 1}, "bounds name 'y'"),
        ({"x": -1}, "above 0"),
        ({"x": "around"}, "no bound"),
        ({"x": "digits:17"}, "1 to 16"),
        ({"n": "pw:0.1"}, "integers take"),
    ],
)
def test_a_bound_that_does_not_fit_is_refused(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(parvae.SettingError, match=message):
        parvae.compress({"x": np.zeros(3), "n": np.zeros(3, int)}, bounds=bounds)


@pytest.mark.parametrize("rows", [{}, {"x": 3}, {"x": [1j]}, {"x": [1], "y": [1, 2]}, {"x": np.array([object()])}])
def test_rows_that_cannot_be_stored_are_refused(rows: dict[str, Any]) -> None:
    with pytest.raises(parvae.DataError):
        parvae.compress(rows)


@given(numbers=hnp.arrays("i8", st.integers(1, 80)))
@settings(deadline=None)
def test_bins_cover_every_number_and_tables_sum(numbers: Any) -> None:
    bins, _ = fit_bins(numbers)
    symbols, places = bins.symbols_of(numbers)
    np.testing.assert_array_equal(bins.numbers_at(symbols, places), numbers)
    again, end = type(bins).from_bytes(bins.to_bytes(), 0)
    assert end == len(bins.to_bytes())
    np.testing.assert_array_equal(again.numbers_at(symbols, places), numbers)
    tables_from(levels_of(np.bincount(symbols, minlength=len(bins))[None]))
