"""Whole numbers as symbols: bins of the widths that the numbers themselves ask for, and frequencies in few bits.

A bin covers 2**bits numbers from its start: its index is a symbol for the entropy coder, the place inside it is `bits`
uniform bits. Bins are the leaves of the binary tree over all numbers that codes these numbers in the fewest bits, so
one rule serves twelve levels of a category, money with a spike at zero, and the bit patterns of floats.

Letters in shapes: n numbers, S bins, T tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import MAX_SYMBOLS, NUM_SLOTS, Decoder, Part, Tables

BIN_COST_BITS = 14.0
"""About what one more bin costs in the tables of a block."""
UNIFORM = Tables(np.array([np.arange(256) < 1 << bits for bits in range(9)]) * (NUM_SLOTS >> np.arange(9))[:, None])
"""Table `bits` gives 2**bits symbols the same frequency: for bits that nothing is known of."""
_LEVEL_WEIGHTS = np.array([0, *((4 + step % 4) << step // 4 for step in range(4 * 40))])
TABLES_AT_ONCE = 16
"""Columns; it bounds what their padding to equal width may take."""
MAX_SINGLES = 64
"""So few distinct numbers have a bin each, also where all are as frequent: other columns may tell them apart."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins that do not overlap, by rising start; every number they were fitted to lies in one."""

    base: int
    """What is subtracted first: the smallest number."""
    starts: NDArray[np.uint64]
    """(S,) distances from `base`."""
    bits: NDArray[np.uint8]
    """(S,) width of each bin as a power of two."""

    def __len__(self) -> int:
        return len(self.starts)

    def symbols_of(
        self, numbers: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.unsignedinteger[Any]]]:
        """(n,) the bin of each number, and (n,) its place inside the bin."""
        if numbers.dtype == np.uint8:
            present = np.flatnonzero(np.bincount(numbers))
            table, place = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
            table[present], place[present] = self.symbols_of(present)
            return table[numbers], place[numbers]
        distances = _distances(numbers.astype(np.int64, copy=False), self.base)
        reach = int(self.starts[-1]) + (1 << int(self.bits[-1]))
        if reach <= max(1 << 12, len(numbers) // 4):
            symbols = self._bin_of(np.arange(reach, dtype=np.uint64))[distances]
        else:
            symbols = self._bin_of(distances)
        return symbols, distances - self.starts[symbols]

    def _bin_of(self, distances: NDArray[np.uint64]) -> NDArray[np.uint8]:
        return (np.searchsorted(self.starts, distances, side="right") - 1).astype(np.uint8)

    def numbers_at(
        self, symbols: NDArray[np.uint8], places: NDArray[np.unsignedinteger[Any]] | None, dtype: type = np.int64
    ) -> NDArray[np.integer[Any]]:
        """(n,) the numbers that `symbols_of` took apart, int64 or uint8; no places means 0 everywhere."""
        unsigned = np.dtype(dtype).str.replace("i", "u")
        first = (self.starts + np.uint64(self.base % (1 << 64))).astype(unsigned)
        numbers = first.take(symbols)
        if places is not None:
            numbers += places.astype(unsigned, copy=False)
        return numbers.view(dtype)

    def place_parts(self, symbols: NDArray[np.uint8], places: NDArray[np.unsignedinteger[Any]]) -> list[Part]:
        """The places as uniform symbols of at most 8 bits, lowest bits first; numbers whose bin is through drop out."""
        parts = []
        for low, chosen, width in self._rounds(symbols):
            values = places[chosen] if low == 0 else places[chosen] >> np.uint64(low)
            parts.append(Part(symbols=values.astype(np.uint8), tables=UNIFORM, table_index=width))
        return parts

    def read_places(self, decoder: Decoder, symbols: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]] | None:
        """The places that `place_parts` wrote; None when every bin holds one number."""
        if not self.bits.any():
            return None
        wide = np.uint64 if self.bits.max() > 8 else np.uint8
        places: NDArray[np.unsignedinteger[Any]] = np.zeros(len(symbols), wide)
        for low, chosen, width in self._rounds(symbols):
            values = decoder.read(len(width), UNIFORM, width)
            if low == 0:
                places[chosen] = values
            else:
                places[chosen] |= values.astype(np.uint64) << np.uint64(low)
        return places

    def _rounds(self, symbols: NDArray[np.uint8]) -> list[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
        """For bits 0, 8, ...: which numbers still have bits there, and how many (at most 8) each of them has."""
        if not self.bits.any():
            return []
        remaining = self.bits.view(np.int8).take(symbols)
        rounds = []
        for low in range(0, int(remaining.max(initial=0)), 8):
            chosen = (remaining > low).nonzero()[0]
            width = remaining.take(chosen) - np.int8(low)
            rounds.append((low, chosen, np.minimum(np.int8(8), width).view(np.uint8)))
        return rounds

    def to_bytes(self) -> bytes:
        """u8 S - 1 | i64 base | S bytes of bits | S gaps between the end of a bin and the next start, 7 bits a byte."""
        ends = np.concatenate([[np.uint64(0)], (self.starts + (np.uint64(1) << self.bits.astype(np.uint64)))[:-1]])
        gaps = b"".join(varint(int(gap)) for gap in self.starts - ends)
        return bytes([len(self) - 1]) + self.base.to_bytes(8, "little", signed=True) + self.bits.tobytes() + gaps

    @classmethod
    def from_bytes(cls, content: bytes, position: int) -> tuple[Bins, int]:
        """The bins that `to_bytes` wrote at `position`, and where they end."""
        size = content[position] + 1
        base = int.from_bytes(content[position + 1 : position + 9], "little", signed=True)
        bits = np.frombuffer(content, np.uint8, size, position + 9)
        position += 9 + size
        gaps = np.frombuffer(content[position : position + size], np.uint8)
        if len(gaps) == size and int(gaps.max()) < 0x80 and int(bits.max()) <= 48:  # a gap a byte, no overflow
            widths = np.uint64(1) << bits.astype(np.uint64)
            return cls(base, (gaps + widths).cumsum() - widths, bits), position + size
        starts, end = [], 0
        found, position = read_varints(content, position, size)
        for gap, width in zip(found, bits.tolist(), strict=True):
            starts.append(end + gap)
            end += gap + (1 << width)
        if end > 1 << 64:
            raise CorruptFileError("the bins of a column reach beyond 64 bits; the file is damaged")
        return cls(base, np.array(starts, np.uint64), bits), position


def fit_bins(numbers: NDArray[np.integer[Any]], bin_cost: float = BIN_COST_BITS) -> tuple[Bins, float]:
    """The bins that code `numbers` (n,), n > 0, in the fewest bits, and about how many that is, tables included."""
    base = int(numbers.min())
    distances, counts = _counted(numbers, base)
    if len(distances) <= MAX_SINGLES and len(numbers) >= 16 * len(distances):
        num_bits = float(np.sum(counts * np.log2(len(numbers) / counts))) + bin_cost * len(distances)
        return Bins(base, distances, np.zeros(len(distances), np.uint8)), num_bits
    while True:
        bins, num_bits = _cheapest_tree(base, distances, counts.astype(np.float64), bin_cost)
        if len(bins) <= MAX_SYMBOLS:
            return bins, num_bits
        bin_cost *= 2.0


def even_bins(numbers: NDArray[np.integer[Any]]) -> Bins:
    """Bins of one width, the smallest power of two of which at most 256 reach over `numbers` (n,), n > 0."""
    base = int(numbers.min())
    reach = int(numbers.max()) - base
    bits = max(0, reach.bit_length() - MAX_SYMBOLS.bit_length() + 1)
    starts = np.arange((reach >> bits) + 1, dtype=np.uint64) << np.uint64(bits)
    return Bins(base, starts, np.full(len(starts), bits, np.uint8))


def _counted(numbers: NDArray[np.integer[Any]], base: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The distinct distances from `base`, rising, and how often each occurs."""
    if int(numbers.max()) - base < max(1 << 16, len(numbers)):
        counts = np.bincount(numbers if base == 0 else numbers - numbers.dtype.type(base))
        distances = np.flatnonzero(counts)
        return distances.astype(np.uint64), counts[distances]
    return np.unique(_distances(numbers.astype(np.int64, copy=False), base), return_counts=True)


def _cheapest_tree(
    base: int, keys: NDArray[np.uint64], counts: NDArray[np.float64], bin_cost: float
) -> tuple[Bins, float]:
    """Dynamic programming from single numbers up: a node becomes one bin where its two halves would cost more."""
    total = counts.sum()
    cost = counts * np.log2(total / counts) + bin_cost
    is_bin = np.ones(len(keys), bool)
    layers = []
    while len(keys) > 1:
        is_first = np.concatenate([[True], np.diff(keys >> np.uint64(1)) != 0])
        layers.append((keys, is_bin, np.cumsum(is_first) - 1))
        first = np.flatnonzero(is_first)
        keys = keys[first] >> np.uint64(1)
        counts = np.add.reduceat(counts, first)
        halves = np.add.reduceat(cost, first)
        whole = counts * (np.log2(total / counts) + len(layers)) + bin_cost
        is_bin = (whole <= halves) & (len(layers) < 64)
        cost = np.where(is_bin, whole, halves)
    starts, bits = [], []
    active = np.ones(1, bool)
    for level in range(len(layers), -1, -1):
        found = active & is_bin
        starts.append(keys[found] << np.uint64(level))
        bits.append(np.full(int(found.sum()), level, np.uint8))
        if level:
            is_open = active & ~is_bin
            keys, is_bin, parent_of = layers[level - 1]
            active = is_open[parent_of]
    all_starts, all_bits = np.concatenate(starts), np.concatenate(bits)
    order = np.argsort(all_starts)
    return Bins(base, all_starts[order], all_bits[order]), float(cost[0])


def levels_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Counts rounded to 4 steps an octave, as one byte each: 0 is 0, counts to 8 are exact."""
    mantissas, exponents = np.frexp(counts.astype(np.float64))
    levels = 1 + 4 * (exponents - 1) + np.rint(8 * mantissas - 4)
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def tables_from(levels: NDArray[np.uint8]) -> Tables:
    """The coding tables (T, S) that levels stand for, in whole numbers; a row without any level gives its first symbol.

    Raises CorruptFileError when a level is out of range.
    """
    return Tables(_frequencies_from(levels))


def all_tables_from(all_levels: Sequence[NDArray[np.uint8]]) -> Iterator[Tables]:
    """`tables_from` of each, many at a time: most are small, and each would cost some twenty numpy calls."""
    for first in range(0, len(all_levels), TABLES_AT_ONCE):
        chunk = all_levels[first : first + TABLES_AT_ONCE]
        ends = np.cumsum([len(levels) for levels in chunk]).tolist()
        padded = np.zeros((ends[-1], max(levels.shape[1] for levels in chunk)), np.uint8)
        for levels, end in zip(chunk, ends, strict=True):
            padded[end - len(levels) : end, : levels.shape[1]] = levels
        frequencies = _frequencies_from(padded)
        for levels, end in zip(chunk, ends, strict=True):
            yield Tables(frequencies[end - len(levels) : end, : levels.shape[1]])


def _frequencies_from(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    if levels.size and int(levels.max()) >= len(_LEVEL_WEIGHTS):
        raise CorruptFileError("a coding table holds a level that no encoder writes; the file is damaged")
    weights = _LEVEL_WEIGHTS[levels]
    weights[:, 0] += ~levels.any(axis=1)
    scaled = weights * NUM_SLOTS // weights.sum(axis=1, keepdims=True)
    frequencies: NDArray[np.int64] = np.maximum(scaled, weights > 0)
    rows = np.arange(len(frequencies))
    while True:  # what rounding took or gave goes to the most frequent symbol, at most half of it at a time
        missing = NUM_SLOTS - frequencies.sum(axis=1)
        if not missing.any():
            return frequencies
        largest = frequencies.argmax(axis=1)
        frequencies[rows, largest] += np.maximum(missing, -(frequencies[rows, largest] // 2))


def _distances(numbers: NDArray[np.int64], base: int) -> NDArray[np.uint64]:
    distances: NDArray[np.uint64] = numbers.view(np.uint64) - np.uint64(base % (1 << 64))
    return distances


def varint(number: int) -> bytes:
    """A whole number of at least 0, seven bits a byte, lowest first; the highest bit says that more follow."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def read_varints(content: bytes, position: int, count: int) -> tuple[list[int], int]:
    """The numbers that `varint` wrote one after the other at `position`, and where they end."""
    found = []
    for _ in range(count):
        number = shift = 0
        while (byte := content[position]) > 0x7F:
            number |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if shift >= 70:
                raise CorruptFileError("a length in the tables is too long; the file is damaged")
        found.append(number | byte << shift)
        position += 1
    return found, position
