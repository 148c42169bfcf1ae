"""Entropy coding of whole arrays: rANS with many lanes in numpy, integer tables, the same bytes on every machine.

Symbol i of a part goes to lane i % num_lanes; all lanes take one step at a time, so a step is a few numpy calls. A
stream holds several parts one after the other (each with its own tables) and is

    u32 num_lanes | u32 state of every lane | u16 words

little endian. Tables have 2**12 slots and at most 256 symbols; states stay in [2**16, 2**32) and take words of 16 bits.
The encoder starts every lane at the state 2**16 and works backwards, so a decoder that has read everything must find
these states again and no word left: damage that no checksum saw is noticed here.
Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving: F. Giesen (arXiv 1402.3392).

Letters in shapes: T tables, S symbols of the largest table, n symbols of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError

SLOT_BITS = 12
NUM_SLOTS = 1 << SLOT_BITS
MAX_SYMBOLS = 256
MAX_LANES = 8192
LANE_BITS = 16
"""What a lane costs: its first state says nothing."""
MAX_LANE_SHARE = 0.005
"""Of the bits of a stream, what its lanes may cost."""
_LOWEST_STATE = 1 << 16


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequencies (T, S) of symbols in units of 1 / 4096; every row sums to 4096. A symbol of frequency 0 cannot occur.

    Raises CorruptFileError when a row does not, for tables come from files.
    """

    frequencies: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.frequencies.shape
        if len(shape) != 2 or not 0 < shape[1] <= MAX_SYMBOLS or not shape[0]:
            raise CorruptFileError(f"coding tables of shape {shape}; a table has 1 to {MAX_SYMBOLS} symbols")
        if np.any(self.frequencies < 0) or np.any(self.frequencies.sum(axis=1) != NUM_SLOTS):
            raise CorruptFileError(f"a coding table does not sum to {NUM_SLOTS}")

    @cached_property
    def packed_for_encoding(self) -> NDArray[np.uint32]:
        """(T * S,) start | frequency << 16."""
        starts = np.cumsum(self.frequencies, axis=1) - self.frequencies
        packed: NDArray[np.uint32] = (starts | self.frequencies << 16).astype(np.uint32).reshape(-1)
        return packed

    @cached_property
    def packed_for_decoding(self) -> NDArray[np.uint32]:
        """(T * 4096,) for every slot: symbol | frequency - 1 << 8 | slot - start << 20."""
        num_tables, num_symbols = self.frequencies.shape
        starts = np.cumsum(self.frequencies, axis=1) - self.frequencies
        entry = (np.arange(num_symbols) | (self.frequencies - 1) << 8) - (starts << 20)
        by_slot = np.repeat(entry.reshape(-1), self.frequencies.reshape(-1)).reshape(num_tables, NUM_SLOTS)
        packed: NDArray[np.uint32] = (by_slot + (np.arange(NUM_SLOTS) << 20)).astype(np.uint32).reshape(-1)
        return packed


@dataclass(frozen=True, kw_only=True)
class Part:
    """Symbols (n,) to encode with `tables`; `table_index` (n,) says which one each symbol takes (None: the first)."""

    symbols: NDArray[np.integer]
    tables: Tables
    table_index: NDArray[np.integer] | None = None


def lanes_for(num_bits: float, num_symbols: int) -> int:
    """How many lanes a stream of about `num_bits` affords: more are faster, and each costs LANE_BITS."""
    affordable = int(num_bits * MAX_LANE_SHARE / LANE_BITS)
    return max(1, min(MAX_LANES, affordable, num_symbols))


def encode(parts: Sequence[Part], num_lanes: int) -> bytes:
    """The stream that a `Decoder` reads part by part, in the order given. Symbols must have a frequency above 0."""
    states = np.full(num_lanes, _LOWEST_STATE, np.uint32)
    groups: list[NDArray[np.uint16]] = []
    for part in reversed(parts):
        index = part.symbols.astype(np.int64)
        if part.table_index is not None:
            index += part.table_index.astype(np.int64) * part.tables.frequencies.shape[1]
        packed = part.tables.packed_for_encoding[index]
        _encode_part(states, packed & np.uint32(0xFFFF), packed >> np.uint32(16), groups)
    words = np.concatenate(groups[::-1]) if groups else np.empty(0, np.uint16)
    header = np.array([num_lanes], "<u4").tobytes()
    return header + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _encode_part(
    states: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    frequencies: NDArray[np.uint32],
    groups: list[NDArray[np.uint16]],
) -> None:
    assert frequencies.all(), "a symbol of frequency 0 cannot be coded"
    # x -> x // f * 4096 + x % f + start, written as x + start + x // f * (4096 - f). Division in float64 is exact here
    # (x < 2**32, f <= 2**12: a quotient that is no whole number is 2**-12 away from one) and twice as fast.
    strides = np.uint32(NUM_SLOTS) - frequencies
    divisors = frequencies.astype(np.float64)
    num_lanes = len(states)
    shift = np.uint32(32 - SLOT_BITS)
    for first in range((len(starts) - 1) // num_lanes * num_lanes, -1, -num_lanes):
        here = slice(first, first + num_lanes)
        x = states[: len(starts[here])]
        full = np.flatnonzero(x >> shift >= frequencies[here])
        if len(full):
            taken = x[full]
            groups.append(taken.astype(np.uint16))
            x[full] = taken >> np.uint32(16)
        quotient = np.divide(x, divisors[here]).astype(np.uint32)
        x += starts[here]
        x += quotient * strides[here]


class Decoder:
    """Reads the parts of a stream in order; `finish` proves that it was read to its end, and rightly."""

    def __init__(self, stream: bytes | memoryview) -> None:
        num_lanes = int(np.frombuffer(stream[:4], "<u4")[0]) if len(stream) >= 4 else 0
        end = 4 + 4 * num_lanes
        if not 0 < num_lanes <= MAX_LANES or len(stream) < end or (len(stream) - end) % 2:
            raise CorruptFileError(f"an rANS stream of {len(stream)} bytes claims {num_lanes} lanes; it is damaged")
        self._states = np.frombuffer(stream[4:end], "<u4").astype(np.uint32)
        self._words = np.frombuffer(stream[end:], "<u2").astype(np.uint32)
        self._position = 0

    def read(
        self, num_symbols: int, tables: Tables, table_index: NDArray[np.integer] | None = None
    ) -> NDArray[np.uint8]:
        """(num_symbols,) the next part; arguments as it was encoded with.

        Raises CorruptFileError when the stream ends before the part does.
        """
        packed = tables.packed_for_decoding
        entries = np.empty(num_symbols, np.uint32)
        offsets = None if table_index is None else table_index.astype(np.uint32) << np.uint32(SLOT_BITS)
        low, frequency_bits = np.uint32(NUM_SLOTS - 1), np.uint32(SLOT_BITS)
        eight, twenty, sixteen, one = (np.uint32(number) for number in (8, 20, 16, 1))
        num_lanes = len(self._states)
        position, num_words = self._position, len(self._words)
        for first in range(0, num_symbols, num_lanes):
            x = self._states[: num_symbols - first]
            entry = entries[first : first + num_lanes]
            slots = x & low
            if offsets is not None:
                slots |= offsets[first : first + num_lanes]
            packed.take(slots, out=entry, mode="clip")
            frequencies = entry >> eight
            frequencies &= low
            frequencies += one
            x >>= frequency_bits
            x *= frequencies
            x += entry >> twenty
            hungry = (x < _LOWEST_STATE).nonzero()[0]
            end = position + len(hungry)
            if end > num_words:
                raise CorruptFileError("an rANS stream ends before its symbols do; the file is damaged")
            fed = x[hungry]
            fed <<= sixteen
            fed |= self._words[position:end]
            x[hungry] = fed
            position = end
        self._position = position
        return entries.astype(np.uint8)

    def finish(self) -> None:
        """Raise CorruptFileError unless every word is used and every lane is back where encoding began."""
        if self._position != len(self._words) or np.any(self._states != _LOWEST_STATE):
            raise CorruptFileError("an rANS stream does not end where its encoder began; the file is damaged")
