"""Entropy coding of whole arrays: rANS with many lanes in numpy, integer tables, the same bytes on every machine.

Symbol i of a part goes to lane i % num_lanes; all lanes take one step at a time, so a step is a few numpy calls. A
stream holds several parts one after the other (each with its own tables) and is

    4 bits for every lane: how many bits its state has below the leading one, less 16 | those bits | u16 words

little endian; bits fill bytes from the highest. Tables have 2**12 slots and at most 256 symbols; states stay in
[2**16, 2**32) and take words of 16 bits. The encoder starts its first lanes at the state 2**16 and works backwards, so
a decoder that has read everything must find these states again and no word left: damage that no checksum saw is noticed
here. Later lanes start at 2**16 plus a word taken back from those written: where a decoder reaches this place it drops
them, and what is left of their states are the words that come next. So a lane costs little but its last state.
Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving: F. Giesen (arXiv 1402.3392).

Letters in shapes: T tables, S symbols of the largest table, L lanes, n symbols of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError

SLOT_BITS = 12
NUM_SLOTS = 1 << SLOT_BITS
MAX_SYMBOLS = 256
MAX_LANES = 8192
LANE_BITS = 5
"""About what a lane costs: 4 beyond the information in its last state, and a share of what the first lanes cost."""
FIRST_SHARE = 32
"""An encoder starts with one of so many of its lanes; the first cost 16 bits more each."""
MAX_LANE_SHARE = 0.0075
"""Of the bits of a stream, what its lanes may cost."""
_LOWEST_STATE = 1 << 16
_SHIFTED_SLOTS = np.arange(NUM_SLOTS, dtype=np.uint32) << np.uint32(20)
_CONSTANTS = [np.array(number, np.uint32) for number in (NUM_SLOTS - 1, SLOT_BITS, 8, 20, 16, 1, _LOWEST_STATE)]
"""What a decoder computes with: numpy takes arrays faster than its scalars."""


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
        if self.frequencies.min() < 0 or (self.frequencies.sum(axis=1) != NUM_SLOTS).any():
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
        starts = self.frequencies.cumsum(axis=1) - self.frequencies
        entry = ((np.arange(num_symbols) | (self.frequencies - 1) << 8) - (starts << 20)).astype(np.uint32)
        by_slot = np.repeat(entry.reshape(-1), self.frequencies.reshape(-1)).reshape(num_tables, NUM_SLOTS)
        by_slot += _SHIFTED_SLOTS
        return by_slot.reshape(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Symbols (n,) to encode with `tables`; `table_index` (n,) says which one each symbol takes (None: the first)."""

    symbols: NDArray[np.integer]
    tables: Tables
    table_index: NDArray[np.integer] | None = None

    def intervals(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """First slot (n,) and number of slots (n,) of every symbol."""
        packed = self.tables.packed_for_encoding[self._entries()]
        return packed & np.uint32(0xFFFF), packed >> np.uint32(16)

    def num_bits(self) -> float:
        """What the symbols take."""
        frequencies = self.tables.frequencies.reshape(-1)
        counts = np.bincount(self._entries(), minlength=frequencies.size)
        return float(-(counts * np.log2(np.maximum(frequencies, 1) / NUM_SLOTS)).sum())

    def _entries(self) -> NDArray[np.int64]:
        """(n,) where each symbol stands in the tables, one after the other."""
        entries = self.symbols.astype(np.int64)
        if self.table_index is not None:
            entries += self.table_index.astype(np.int64) * self.tables.frequencies.shape[1]
        return entries


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPart:
    """Symbols (n,) each with a table of its own: symbol s of row i has the slots from bounds[s, i] to bounds[s + 1, i].

    `bounds` (S + 1, n) rise from 0 to 4096 along the first axis.
    """

    symbols: NDArray[np.integer]
    bounds: NDArray[np.uint32]

    def intervals(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """First slot (n,) and number of slots (n,) of every symbol."""
        rows = np.arange(len(self.symbols))
        starts = self.bounds[self.symbols, rows]
        return starts, self.bounds[self.symbols + 1, rows] - starts

    def num_bits(self) -> float:
        """What the symbols take."""
        return float(-np.log2(self.intervals()[1] / NUM_SLOTS).sum())


def lanes_for(num_bits: float, num_symbols: int) -> int:
    """How many lanes a stream of about `num_bits` affords: more are faster, and each costs LANE_BITS."""
    affordable = int(num_bits * MAX_LANE_SHARE / LANE_BITS)
    return max(1, min(MAX_LANES, affordable, num_symbols))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What `encode` wrote, and what a `Decoder` must know beside it."""

    content: bytes
    lanes: Sequence[tuple[int, int]]
    """(first symbol, lanes): how many lanes there are from which symbol of the stream on; they become fewer."""


def encode(parts: Sequence[Part | SplitPart], num_lanes: int) -> Stream:
    """The stream that a `Decoder` reads part by part, in the order given. Symbols must have a frequency above 0."""
    encoder = _Encoder(num_lanes)
    for part in reversed(parts):
        encoder.add(part)
    return encoder.finish()


class _Encoder:
    """Writes a stream from its end to its start; lanes join as soon as there are words to start them with."""

    def __init__(self, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._states = np.full(-(-num_lanes // FIRST_SHARE), _LOWEST_STATE, np.uint32)
        self._groups: list[NDArray[np.uint16]] = []
        self._num_words = self._num_symbols = 0
        self._joined: list[tuple[int, int]] = []
        """Symbols before which lanes joined, counted from the end, and the lanes there were."""

    def add(self, part: Part | SplitPart) -> None:
        """Code the symbols of the part before those that came so far."""
        starts, frequencies = part.intervals()
        assert frequencies.all(), "a symbol of frequency 0 cannot be coded"
        # x -> x // f * 4096 + x % f + start, written as x + start + x // f * (4096 - f). Division in float64 is exact
        # (x < 2**32, f <= 2**12: a quotient that is no whole number is 2**-12 away from one) and twice as fast.
        strides = np.uint32(NUM_SLOTS) - frequencies
        divisors = frequencies.astype(np.float64)
        shift = np.uint32(32 - SLOT_BITS)
        last = len(starts)
        while last:
            self._join()
            first = (last - 1) // len(self._states) * len(self._states)
            here = slice(first, last)
            x = self._states[: last - first]
            full = np.flatnonzero(x >> shift >= frequencies[here])
            if len(full):
                taken = x[full]
                self._groups.append(taken.astype(np.uint16))
                self._num_words += len(full)
                x[full] = taken >> np.uint32(16)
            quotient = np.divide(x, divisors[here]).astype(np.uint32)
            x += starts[here]
            x += quotient * strides[here]
            self._num_symbols += last - first
            last = first

    def _join(self) -> None:
        """Twice as many lanes, where they are wanted and the words written so far can start them."""
        num_more = min(len(self._states), self._num_lanes - len(self._states))
        if not num_more or self._num_words < num_more:
            return
        words = np.concatenate(self._groups[::-1])
        self._joined.append((self._num_symbols, len(self._states)))
        self._states = np.concatenate([self._states, _LOWEST_STATE | words[:num_more].astype(np.uint32)])
        self._groups, self._num_words = [words[num_more:]], self._num_words - num_more

    def finish(self) -> Stream:
        """Everything that was coded."""
        words = np.concatenate(self._groups[::-1]) if self._groups else np.empty(0, np.uint16)
        firsts = [0, *(self._num_symbols - after for after, _ in self._joined[::-1])]
        lanes = [len(self._states), *(num_lanes for _, num_lanes in self._joined[::-1])]
        content = _packed_states(self._states) + words.astype("<u2").tobytes()
        return Stream(content=content, lanes=list(zip(firsts, lanes, strict=True)))


def _packed_states(states: NDArray[np.uint32]) -> bytes:
    bits = np.unpackbits(states.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    leading = bits.argmax(axis=1)
    below = np.arange(32) > leading[:, None]
    sizes = np.append(15 - leading, 0).astype(np.uint8)  # one more, for an odd number of lanes
    halves = sizes[0 : len(states) : 2] | sizes[1 : len(states) + 1 : 2] << 4
    return halves.tobytes() + np.packbits(bits[below]).tobytes()


def _unpacked_states(content: bytes | memoryview, num_lanes: int) -> tuple[NDArray[np.uint32], int]:
    """(L,) the states that `_packed_states` packed, and where they end."""
    halves = np.frombuffer(content, np.uint8, -(-num_lanes // 2))
    leading = 15 - np.stack([halves & 15, halves >> 4], axis=1).reshape(-1)[:num_lanes].astype(np.int64)
    below = np.arange(32) > leading[:, None]
    num_bits = int(below.sum())
    end = len(halves) + -(-num_bits // 8)
    bits = (np.arange(32) == leading[:, None]).astype(np.uint8)
    bits[below] = np.unpackbits(np.frombuffer(content[len(halves) : end], np.uint8), count=num_bits)
    return np.packbits(bits, axis=1).view(">u4").reshape(-1).astype(np.uint32), end


class Decoder:
    """Reads the parts of a stream in order; `finish` proves that it was read to its end, and rightly.

    `lanes` is that of the `Stream`. Without it the stream is as it was before format 3: u32 lanes | u32 state of every
    lane | u16 words, and all lanes stay to the end.

    Raises CorruptFileError when this is no stream.
    """

    def __init__(self, stream: bytes | memoryview, lanes: Sequence[Sequence[int]] | None = None) -> None:
        if lanes is None:
            lanes = [(0, int(np.frombuffer(stream[:4], "<u4")[0]) if len(stream) >= 4 else 0)]
            _require_lanes(lanes, len(stream) // 4 - 1)
            end = 4 + 4 * lanes[0][1]
            self._states = np.frombuffer(stream[4:end], "<u4").astype(np.uint32)
        else:
            _require_lanes(lanes, len(stream) // 2)
            try:
                self._states, end = _unpacked_states(stream, lanes[0][1])
            except ValueError as error:
                raise CorruptFileError("an rANS stream is cut off; the file is damaged") from error
        if (len(stream) - end) % 2:
            raise CorruptFileError("an rANS stream ends in half a word; the file is damaged")
        self._words = np.frombuffer(stream[end:], "<u2").astype(np.uint32)
        self._drops = list(lanes[1:])
        self._position = self._num_read = 0

    def read(
        self, num_symbols: int, tables: Tables, table_index: NDArray[np.integer] | None = None
    ) -> NDArray[np.uint8]:
        """(num_symbols,) the next part; arguments as it was encoded with.

        Raises CorruptFileError when the stream ends before the part does.
        """
        entries = np.empty(num_symbols, np.uint32)
        offsets = None if table_index is None else table_index.astype(np.uint32) << np.uint32(SLOT_BITS)
        for here in self._spans(num_symbols):
            self._read(entries[here], tables.packed_for_decoding, None if offsets is None else offsets[here])
        return entries.astype(np.uint8)

    def read_split(self, bounds: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """(n,) the next part, which was encoded as a `SplitPart` with these bounds (S + 1, n).

        Raises CorruptFileError when the stream ends before the part does.
        """
        symbols = np.empty(bounds.shape[1], np.uint8)
        for here in self._spans(len(symbols)):
            self._read_split(symbols[here], bounds[:, here])
        return symbols

    def _spans(self, num_symbols: int) -> Iterator[slice]:
        """Stretches of a part in which the lanes stay the same."""
        first = 0
        while first < num_symbols:
            last = num_symbols
            if self._drops:
                last = min(last, first + self._drops[0][0] - self._num_read)
            yield slice(first, last)
            self._num_read += last - first
            if self._drops and self._num_read == self._drops[0][0]:
                self._drop_to(self._drops.pop(0)[1])
            first = last

    def _read(
        self, entries: NDArray[np.uint32], packed: NDArray[np.uint32], offsets: NDArray[np.uint32] | None
    ) -> None:
        low, frequency_bits, eight, twenty, sixteen, one, lowest = _CONSTANTS
        num_lanes = len(self._states)
        words, position, num_words = self._words, self._position, len(self._words)
        for first in range(0, len(entries), num_lanes):
            entry = entries[first : first + num_lanes]
            x = self._states[: len(entry)]
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
            hungry = (x < lowest).nonzero()[0]
            end = position + len(hungry)
            if end > num_words:
                raise CorruptFileError("an rANS stream ends before its symbols do; the file is damaged")
            fed = x[hungry]
            fed <<= sixteen
            fed |= words[position:end]
            x[hungry] = fed
            position = end
        self._position = position

    def _read_split(self, symbols: NDArray[np.uint8], bounds: NDArray[np.uint32]) -> None:
        low, frequency_bits, _, _, sixteen, _, lowest = _CONSTANTS
        num_lanes, num_symbols = len(self._states), len(symbols)
        flat = np.ascontiguousarray(bounds).reshape(-1)
        inner, stride = list(bounds[1:-1]), np.int64(num_symbols)
        rows = np.arange(num_symbols)
        for first in range(0, num_symbols, num_lanes):
            here = slice(first, first + num_lanes)
            x = self._states[: min(num_lanes, num_symbols - first)]
            slots = x & low
            found = symbols[here]
            found[:] = slots >= inner[0][here]
            for bound in inner[1:]:
                found += slots >= bound[here]
            place = found * stride
            place += rows[here]
            starts = flat.take(place, mode="clip")
            place += stride
            frequencies = flat.take(place, mode="clip")
            frequencies -= starts
            x >>= frequency_bits
            x *= frequencies
            slots -= starts
            x += slots
            hungry = (x < lowest).nonzero()[0]
            end = self._position + len(hungry)
            if end > len(self._words):
                raise CorruptFileError("an rANS stream ends before its symbols do; the file is damaged")
            x[hungry] = x[hungry] << sixteen | self._words[self._position : end]
            self._position = end

    def _drop_to(self, num_lanes: int) -> None:
        """Go on with the first lanes; the others are back where they joined, and give their words back."""
        dropped = self._states[num_lanes:]
        if np.any(dropped >> np.uint32(16) != 1):
            raise CorruptFileError("a lane of an rANS stream does not end where it began; the file is damaged")
        self._words = np.concatenate([dropped & np.uint32(0xFFFF), self._words[self._position :]])
        self._states, self._position = self._states[:num_lanes], 0

    def finish(self) -> None:
        """Raise CorruptFileError unless every word is used and every lane is back where encoding began."""
        if self._drops or self._position != len(self._words) or np.any(self._states != _LOWEST_STATE):
            raise CorruptFileError("an rANS stream does not end where its encoder began; the file is damaged")


def _require_lanes(lanes: Sequence[Sequence[int]], most: int) -> None:
    """Raise CorruptFileError unless `lanes` begins at the first symbol, and places rise where numbers fall."""
    firsts, counts = zip(*lanes, strict=True)
    rising, falling = np.all(np.diff(firsts) > 0), np.all(np.diff(counts) < 0)
    if firsts[0] != 0 or not rising or not falling or not 0 < counts[-1] <= counts[0] <= min(MAX_LANES, most):
        raise CorruptFileError(f"an rANS stream claims lanes {list(lanes)}; it is damaged")
