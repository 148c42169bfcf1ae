"""The coder: any symbols under any tables come back, at the rate the tables promise, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import LANE_BITS, MAX_LANES, NUM_SLOTS, Decoder, Part, Stream, Tables, encode, lanes_for


def scalar_decode(stream: Stream, parts: list[tuple[int, list[list[int]], list[int]]]) -> list[list[int]]:
    """The oracle: one lane at a time, in Python integers, written from the description of the format alone."""
    states, words = scalar_states(stream)
    lanes_from = dict(stream.lanes)
    decoded: list[list[int]] = []
    num_read = 0
    for num_symbols, tables, index in parts:
        symbols: list[int] = []
        lane = 0
        for table in (tables[number] for number in index):
            if lane == len(states):
                lane = 0
            slot, symbol, start = states[lane] % 4096, 0, 0
            while start + table[symbol] <= slot:
                start, symbol = start + table[symbol], symbol + 1
            states[lane] = table[symbol] * (states[lane] // 4096) + slot - start
            if states[lane] < 65536:
                states[lane] = states[lane] * 65536 + words.pop(0)
            symbols.append(symbol)
            lane, num_read = lane + 1, num_read + 1
            if num_read in lanes_from:
                ended, states = states[lanes_from[num_read] :], states[: lanes_from[num_read]]
                assert all(state // 65536 == 1 for state in ended)
                words = [state % 65536 for state in ended] + words
                lane = 0
        assert len(symbols) == num_symbols
        decoded.append(symbols)
    assert not words
    assert states == [65536] * stream.lanes[-1][1]
    return decoded


def scalar_states(stream: Stream) -> tuple[list[int], list[int]]:
    """The first states, and the words."""
    num_lanes = stream.lanes[0][1]
    num_halves = (num_lanes + 1) // 2
    sizes = [16 + (stream.content[lane // 2] >> 4 * (lane % 2) & 15) for lane in range(num_lanes)]
    num_bytes = (sum(sizes) + 7) // 8
    bits = "".join(f"{byte:08b}" for byte in stream.content[num_halves : num_halves + num_bytes])
    states = []
    for size in sizes:
        states.append(int("1" + bits[:size], 2))
        bits = bits[size:]
    rest = stream.content[num_halves + num_bytes :]
    return states, [int.from_bytes(rest[place : place + 2], "little") for place in range(0, len(rest), 2)]


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
    decoder = Decoder(stream.content, stream.lanes)
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
    stream = encode([part], num_lanes)
    assert stream.lanes[0] == (0, num_lanes)
    waste_bits = 8 * len(stream.content) - bits_of(part)
    assert waste_bits <= 0.001 * bits_of(part) + LANE_BITS * num_lanes + 32


def test_lanes_that_words_cannot_start_do_not_join() -> None:
    part = random_part(np.random.default_rng(1), 100, 1, 16)
    stream = encode([part], MAX_LANES)
    assert len(stream.content) < 3 * stream.lanes[0][1] + 100 < 3 * MAX_LANES
    np.testing.assert_array_equal(Decoder(stream.content, stream.lanes).read(100, part.tables), part.symbols)


def test_a_stream_from_before_format_3_comes_back() -> None:
    certain = Tables(np.array([[NUM_SLOTS]]))
    decoder = Decoder(b"\2\0\0\0" + 2 * b"\0\0\1\0")
    np.testing.assert_array_equal(decoder.read(5, certain), np.zeros(5))
    decoder.finish()


def test_a_symbol_that_is_certain_costs_nothing() -> None:
    part = Part(symbols=np.zeros(100_000, np.int64), tables=Tables(np.array([[NUM_SLOTS, 0]])))
    stream = encode([part], 1)
    assert len(stream.content) == 3
    np.testing.assert_array_equal(Decoder(stream.content, stream.lanes).read(100_000, part.tables), part.symbols)


def test_lanes_cost_less_than_one_percent_and_are_never_more_than_symbols() -> None:
    assert lanes_for(0.0, 0) == 1
    assert lanes_for(1e12, 100) == 100
    assert lanes_for(1e12, 10**9) == MAX_LANES
    for num_bits in (1e4, 1e6, 1e7):
        assert lanes_for(num_bits, 10**9) * LANE_BITS <= max(LANE_BITS, 0.0075 * num_bits)


@pytest.mark.parametrize("where", ["state", "word", "cut", "longer", "place", "lanes", "late"])
def test_damage_ends_in_an_error_or_is_seen_at_the_end(where: str) -> None:
    part = random_part(np.random.default_rng(2), 5_000, 2, 50)
    encoded = encode([part], 64)
    stream, lanes = bytearray(encoded.content), list(encoded.lanes)
    assert len(lanes) > 2
    if where == "state":
        stream[60] ^= 0x10
    elif where == "word":
        stream[300] ^= 0x01
    elif where == "place":
        lanes[1] = (lanes[1][0] - 64, lanes[1][1])
    elif where == "lanes":
        lanes[1] = (lanes[1][0], lanes[1][1] + 1)
    elif where == "late":
        lanes.append((10_000, 1))
    else:
        stream = stream[:-2] if where == "cut" else stream + b"\0\0"

    def read_all() -> None:
        decoder = Decoder(bytes(stream), lanes)
        decoder.read(5_000, part.tables, part.table_index)
        decoder.finish()

    with pytest.raises(CorruptFileError, match="damaged"):
        read_all()


@pytest.mark.parametrize("stream", [b"", b"\1\0\0", bytes(4), b"\xff" * 8, b"\1\0\0\0\0\0\1\0\0"])
def test_what_is_no_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(CorruptFileError, match="rANS stream"):
        Decoder(stream)
    with pytest.raises(CorruptFileError, match="rANS stream"):
        Decoder(stream, [(0, 40)])


@pytest.mark.parametrize(
    "lanes", [[(1, 4)], [(0, 0)], [(0, -1)], [(0, 4), (0, 2)], [(0, 4), (9, 5)], [(0, 4), (9, 0)], [(0, 9000)]]
)
def test_lanes_that_are_none_are_refused(lanes: list[tuple[int, int]]) -> None:
    with pytest.raises(CorruptFileError, match="rANS stream"):
        Decoder(bytes(40_000), lanes)


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
