"""Vectors: every place of a row gets the table that suits it, and what is no row is refused."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from test_vaez_golden import facts_of

import parvae
from parvae.errors import CorruptFileError
from parvae.vaez.places import PlaceContexts, fit_places

GOLDEN = ROOT / "tests" / "golden" / "format-3-vectors.vaez"


def vectors() -> dict[str, np.ndarray]:
    frozen = np.random.RandomState(2)  # a stream that numpy promises never to change
    spread = np.array([1, 1, 2, 9, 30, 0, 15, 4])
    whole = frozen.randint(-50, 51, (1500, 8)) * spread // 50
    return {"code": whole.astype("i1"), "embedding": (whole / 16).astype("f4")}


def test_the_golden_file_of_vectors_decodes_for_ever() -> None:
    blob = GOLDEN.read_bytes()
    assert [column["places"] for column in facts_of(blob)["columns"]] == [8, 8]
    found = parvae.decompress(blob)
    for name, wanted in vectors().items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)


def test_places_of_different_spread_cost_what_each_of_them_would_alone() -> None:
    codes = vectors()["code"]
    apart = {f"code_{place}": np.random.default_rng(place).permutation(codes[:, place]) for place in range(8)}
    assert len(parvae.compress({"code": codes})) < 1.05 * len(parvae.compress(apart))


def test_places_that_look_alike_share_a_table() -> None:
    symbols = np.random.default_rng(0).integers(0, [[3, 9, 3, 9, 3, 9]], (4000, 6)).astype(np.uint8)
    contexts, num_bits = fit_places(symbols.reshape(-1), 9, 6)
    assert contexts.table_of.tolist() == [0, 1, 0, 1, 0, 1]
    assert num_bits == pytest.approx(12_000 * np.log2(3 * 9), rel=0.02)


def test_vectors_within_a_bound_stay_within_it() -> None:
    x = np.random.default_rng(1).normal(size=(700, 5)) * np.array([1, 1e-3, 0, 50, 1e6])
    x[3, 3], x[4, 4] = np.nan, -0.0
    found = parvae.decompress(parvae.compress({"x": x}, bounds={"x": 0.01}))["x"]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    assert np.nanmax(np.abs(found - x)) <= 0.01
    assert np.signbit(found[4, 4])


@pytest.mark.parametrize(("places", "count"), [(0, 12), (-1, 12), (5, 12)])
def test_elements_that_are_no_rows_are_refused(places: int, count: int) -> None:
    with pytest.raises(CorruptFileError, match="no rows"):
        PlaceContexts.from_bytes({"places": places, "count": count}, bytes(20), 0)
