"""Contexts of columns: what earlier columns foretell is not paid for again, and no damaged file makes one up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import parvae
from parvae.errors import CorruptFileError
from parvae.vaez.parents import Forecast, Symbol, Track, context_of, fit_forecast
from parvae.vaez.row_contexts import RowContexts, fit_rows


def track(numbers: Any) -> Track:
    """A column whose numbers are its symbols; -1 is null."""
    num_symbols = int(numbers.max()) + 1
    return Track(
        symbols=np.where(numbers < 0, num_symbols, numbers), num_symbols=num_symbols, numbers=np.maximum(numbers, 0)
    )


def three_columns(num_rows: int = 4000) -> dict[int, Track]:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 30, (2, num_rows))
    return {0: track(first), 1: track(second), 2: track(2 * first + second + rng.integers(0, 3, num_rows))}


def test_a_weighted_sum_is_found() -> None:
    tracks = three_columns()
    forecast = fit_forecast(tracks[2], {0: tracks[0], 1: tracks[1]})
    assert forecast is not None
    assert set(forecast.columns) == {0, 1}
    foretold = forecast.sums(tracks)
    assert np.corrcoef(foretold, tracks[2].numbers)[0, 1] > 0.99
    again, end = Forecast.from_bytes(forecast.columns, forecast.cut(np.sort(foretold), 16).to_bytes(), 0)
    assert end == len(forecast.cut(np.sort(foretold), 16).to_bytes())
    np.testing.assert_array_equal(again.sums(tracks), foretold)
    assert np.bincount(again.groups_at(tracks)).min() > 100


def test_nothing_is_foretold_from_constants_or_from_too_few_rows() -> None:
    tracks = three_columns()
    assert fit_forecast(tracks[2], {0: track(np.zeros(4000, np.int64))}) is None
    assert fit_forecast(tracks[2].every(1000), {0: tracks[0].every(1000)}) is None
    assert fit_forecast(tracks[2], {}) is None


def test_the_contexts_of_a_file_are_those_of_its_encoder() -> None:
    tracks = three_columns()
    parents = [Symbol(column=0, groups=np.arange(31).astype(np.uint8))]
    contexts = fit_rows(tracks[2], parents, {0: tracks[0], 1: tracks[1]})
    again, _ = RowContexts.from_bytes(contexts.facts(), tracks, contexts.to_bytes(), 0)
    np.testing.assert_array_equal(again.tables_at(tracks), contexts.tables_at(tracks))
    assert contexts.num_tables > 4


def test_a_column_that_two_others_add_up_to_is_small() -> None:
    tracks = three_columns(20_000)
    columns = {str(name): column.numbers for name, column in tracks.items()}
    both = len(parvae.compress({name: columns[name] for name in "01"}))
    assert len(parvae.compress(columns)) < both + 0.6 * len(parvae.compress({"2": columns["2"]}))


@given(data=st.data(), num_rows=st.integers(30, 300))
@settings(deadline=None, max_examples=25)
def test_columns_with_nulls_foretell_and_are_foretold(data: st.DataObject, num_rows: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    first = rng.integers(-(2**62), 2**62, num_rows) if data.draw(st.booleans()) else rng.integers(0, 9, num_rows)
    rows = {
        name: np.ma.MaskedArray(
            first * factor + rng.integers(0, 2, num_rows), mask=data.draw(hnp.arrays("?", num_rows))
        )
        for name, factor in (("a", 1), ("b", 3), ("c", -1))
    }
    found = parvae.decompress(parvae.compress(rows))
    for name, wanted in rows.items():
        np.testing.assert_array_equal(np.ma.getmaskarray(found[name]), wanted.mask)
        np.testing.assert_array_equal(np.ma.getdata(found[name])[~wanted.mask], wanted.data[~wanted.mask])


@pytest.mark.parametrize(
    ("parents", "content", "message"),
    [
        ([7], b"", "come after"),
        ([[0, 7]], b"", "come after"),
        ([[]], bytes(9), "forecast claims"),
        ([[0]], bytes([2 * 50, 0, 0]), "shift 50"),
        ([0, 0, 0, 0], bytes([*range(31)]) * 4, "contexts"),
    ],
)
def test_contexts_that_no_encoder_writes_are_refused(parents: list[Any], content: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        RowContexts.from_bytes({"parents": parents, "joined": 1}, dict.fromkeys(range(3), 30), content, 0)


def test_contexts_of_two_parents_count_the_first_one_most() -> None:
    tracks = three_columns()
    groups = np.arange(31).astype(np.uint8)
    context, num_contexts = context_of([Symbol(column=0, groups=groups), Symbol(column=1, groups=groups)], tracks)
    assert num_contexts == 31 * 31
    np.testing.assert_array_equal(context, tracks[0].symbols * 31 + tracks[1].symbols)
