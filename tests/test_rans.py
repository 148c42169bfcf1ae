"""The coder: any symbols under any tables come back, at the rate the tables promise, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import LANE_BITS, MAX_LANES, NUM_SLOTS, Decoder, Part, Tables, encode, lanes_for


def scalar_decode(stream: bytes, parts: list[tuple[int, list[list[int]], list[int]]]) -> list[list[int]]:
    """The oracle: one lane at a time, in Python integers, written from the description of the format alone."""
    num_lanes = int.from_bytes(stream[:4], "little")
    states = [int.from_bytes(stream[4 + 4 * lane : 8 + 4 * lane], "little") for lane in range(num_lanes)]
    position = 4 + 4 * num_lanes
    decoded = []
    for num_symbols, tables, index in parts:
        symbols = []
        for first in range(0, num_symbols, num_lanes):
            lanes = range(min(num_lanes, num_symbols - first))
            for lane in lanes:
                table, slot, symbol, start = tables[index[first + lane]], states[lane] % 4096, 0, 0
                while start + table[symbol] <= slot:
                    start, symbol = start + table[symbol], symbol + 1
                states[lane] = table[symbol] * (states[lane] // 4096) + slot - start
                symbols.append(symbol)
            for lane in lanes:
                if states[lane] < 65536:
                    states[lane] = states[lane] * 65536 + int.from_bytes(stream[position : position + 2], "little")
                    position += 2
        decoded.append(symbols)
    assert position == len(stream)
    assert states == [65536] * num_lanes
    return decoded


def random_tables(rng: np.random.Generator, num_tables: int, num_symbols: int) -> Tables:
    weights = rng.random((num_tables, num_symbols)) ** 8 + 1e-9
    spare = NUM_SLOTS - num_symbols
    frequencies = 1 + np.floor(spare * weights / weights.sum(axis=1, keepdims=True)).astype(np.int64)
    frequencies[:, 0] += NUM_SLOTS - frequencies.sum(axis=1)
    return Tables(frequencies)


def random_part(rng: np.random.Generator, num_symbols: int, num_tables: int, alphabet: int) -> Part:
    tables = random_tables(rng, num_tables, alphabet)
    index = rng.integers(0, num_tables, num_symbols)
    slots = rng.integers(0, NUM_SLOTS, num_symbols)
    symbols = (np.cumsum(tables.frequencies, axis=1)[index] <= slots[:, None]).sum(axis=1)
    return Part(symbols=symbols, tables=tables, table_index=index)


def bits_of(part: Part) -> float:
    index: NDArray[np.integer] = np.zeros(1, np.int64) if part.table_index is None else part.table_index
    return float(-np.log2(part.tables.frequencies[index, part.symbols] / NUM_SLOTS).sum())


@given(
    seed=st.integers(0, 2**32 - 1),
    num_lanes=st.integers(1, 40),
    shapes=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 4), st.integers(1, 256)), min_size=0, max_size=4),
)
@settings(deadline=None)
def test_every_part_comes_back_and_the_scalar_oracle_agrees(
    seed: int, num_lanes: int, shapes: list[tuple[int, int, int]]
) -> None:
    rng = np.random.default_rng(seed)
    parts = [random_part(rng, *shape) for shape in shapes]
    stream = encode(parts, num_lanes)
    decoder = Decoder(stream)
    for part in parts:
        found = decoder.read(len(part.symbols), part.tables, part.table_index)
        np.testing.assert_array_equal(found, part.symbols)
    decoder.finish()
    asked = [
        (len(part.symbols), part.tables.frequencies.tolist(), np.asarray(part.table_index).tolist()) for part in parts
    ]
    assert scalar_decode(stream, asked) == [part.symbols.tolist() for part in parts]


@pytest.mark.parametrize("num_lanes", [1, 7, 512, MAX_LANES])
def test_the_rate_is_that_of_the_tables(num_lanes: int) -> None:
    part = random_part(np.random.default_rng(1), 200_000, 3, 200)
    expected_bits = bits_of(part) + num_lanes * (32 - LANE_BITS / 2)
    assert 8 * len(encode([part], num_lanes)) == pytest.approx(expected_bits, rel=0.001, abs=num_lanes * LANE_BITS)


def test_a_symbol_that_is_certain_costs_nothing() -> None:
    part = Part(symbols=np.zeros(100_000, np.int64), tables=Tables(np.array([[NUM_SLOTS, 0]])))
    stream = encode([part], 1)
    assert len(stream) == 8
    np.testing.assert_array_equal(Decoder(stream).read(100_000, part.tables), part.symbols)


def test_lanes_cost_less_than_half_a_percent_and_are_never_more_than_symbols() -> None:
    assert lanes_for(0.0, 0) == 1
    assert lanes_for(1e12, 100) == 100
    assert lanes_for(1e12, 10**9) == MAX_LANES
    for num_bits in (1e4, 1e6, 1e7):
        assert lanes_for(num_bits, 10**9) * LANE_BITS <= max(LANE_BITS, 0.005 * num_bits)


@pytest.mark.parametrize("where", ["state", "word", "cut", "longer"])
def test_damage_ends_in_an_error_or_is_seen_at_the_end(where: str) -> None:
    part = random_part(np.random.default_rng(2), 5_000, 2, 50)
    stream = bytearray(encode([part], 16))
    if where == "state":
        stream[9] ^= 0x10
    elif where == "word":
        stream[100] ^= 0x01
    else:
        stream = stream[:-2] if where == "cut" else stream + b"\0\0"
    decoder = Decoder(bytes(stream))

    def read_all() -> None:
        decoder.read(5_000, part.tables, part.table_index)
        decoder.finish()

    with pytest.raises(CorruptFileError, match="damaged"):
        read_all()


@pytest.mark.parametrize("stream", [b"", b"\1\0\0", bytes(4), b"\xff" * 8, b"\1\0\0\0\0\0\1\0\0"])
def test_what_is_no_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(CorruptFileError, match="rANS stream"):
        Decoder(stream)


@pytest.mark.parametrize("frequencies", [[[4095]], [[4097, -1]], [[]], [[16] * 257], [4096]])
def test_tables_that_are_none_are_refused(frequencies: list[list[int]]) -> None:
    with pytest.raises(CorruptFileError, match="table"):
        Tables(np.array(frequencies))


def test_every_quotient_that_the_encoder_takes_in_floats_is_that_of_integers() -> None:
    rng = np.random.default_rng(3)
    divisors = np.concatenate([np.arange(1, 4097), rng.integers(1, 4097, 400_000)])
    near = divisors * rng.integers(0, 2**20, len(divisors))
    for x in (near, np.maximum(near - 1, 0), near + divisors - 1, np.full(len(divisors), 2**32 - 1)):
        np.testing.assert_array_equal(np.divide(x, divisors.astype(float)).astype(np.int64), x // divisors)
