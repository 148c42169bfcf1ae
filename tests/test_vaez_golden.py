"""Files, once written, decode for ever: images, differences, forecasts, joined contexts (2), lanes that end (3)."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import parvae
from parvae.vaez.block import HEADER, TAG

GOLDEN = ROOT / "tests" / "golden"


def images() -> dict[str, Any]:
    frozen = np.random.RandomState(0)  # a stream that numpy promises never to change
    y, x = np.indices((7, 7))
    distance = (y - frozen.randint(2, 5, (400, 1, 1))) ** 2 + (x - frozen.randint(2, 5, (400, 1, 1))) ** 2
    spot = np.where(distance < 5, 250 - 20 * distance, 0)
    slope = 5 * np.add.outer(np.arange(5), 2 * np.arange(4))[None, :, :, None] + frozen.randint(0, 60, (400, 1, 1, 3))
    return {
        "spot": np.where(spot > 0, spot + frozen.randint(0, 2, spot.shape), 0).astype("u1"),
        "slope": (slope + frozen.randint(0, 2, slope.shape)).astype("u1"),
    }


def numbers() -> dict[str, Any]:
    frozen = np.random.RandomState(1)
    first, second = frozen.randint(0, 25, (2, 3000))
    noise = frozen.randint(0, 3, (5, 3000))
    return {
        "first": first + noise[0],
        "second": np.ma.MaskedArray(second + noise[1], mask=frozen.randint(0, 17, 3000) == 0),
        "sum": first + second + noise[2],
        "difference": first - second + noise[3],
        "half": (2 * first + second + noise[4]) / 2.0,
    }


@pytest.mark.parametrize("major", [2, 3])
def test_golden_files_decode_for_ever(major: int) -> None:
    for name, rows in (("images", images()), ("numbers", numbers())):
        found = parvae.decompress((GOLDEN / f"format-{major}-{name}.vaez").read_bytes())
        assert list(found) == list(rows)
        for column, wanted in rows.items():
            assert found[column].dtype == wanted.dtype
            np.testing.assert_array_equal(np.ma.getmaskarray(found[column]), np.ma.getmaskarray(wanted))
            np.testing.assert_array_equal(np.ma.filled(found[column], 0), np.ma.filled(wanted, 0))


def test_golden_files_of_format_2_hold_what_is_new_in_it() -> None:
    columns = facts_of((GOLDEN / "format-2-images.vaez").read_bytes())["columns"]
    assert {column["form"] for column in columns if "pixels" in column} == {"integer", "differences"}
    columns = facts_of((GOLDEN / "format-2-numbers.vaez").read_bytes())["columns"]
    assert any(isinstance(parent, list) for column in columns for parent in column["parents"])
    assert all("joined" in column for column in columns)


def test_golden_files_of_format_3_hold_lanes_that_end() -> None:
    for name in ("images", "numbers"):
        lanes = facts_of((GOLDEN / f"format-3-{name}.vaez").read_bytes())["stream"]["lanes"]
        assert len(lanes) > 2


def facts_of(blob: bytes) -> Any:
    """The facts of the first block."""
    start = blob.index(TAG)
    facts_size = HEADER.unpack(blob[start : start + HEADER.size])[2]
    return json.loads(zlib.decompress(blob[start + HEADER.size : start + HEADER.size + facts_size]))


def test_a_flip_of_any_byte_and_any_cut_of_a_file_is_an_error() -> None:
    for name in ("images", "numbers"):
        blob = (GOLDEN / f"format-3-{name}.vaez").read_bytes()
        for position in range(len(blob)):
            damaged = bytearray(blob)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(parvae.CorruptFileError):
                parvae.decompress(bytes(damaged))
        for size in range(0, len(blob), 5):
            with pytest.raises(parvae.CorruptFileError):
                parvae.decompress(blob[:size])
