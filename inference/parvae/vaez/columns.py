"""Columns as the codec holds them, and their plain encoding: what a block may never exceed.

Letters in shapes: n rows, d elements of a vector or image.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError

MAX_SECTION_BYTES = 1 << 31
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
SAMPLE_BYTES = 1 << 15
SAMPLE_MARGIN = 1.3
"""A whole may be this much smaller than its sample foretells."""
_CODECS: Mapping[str, Callable[[bytes], bytes]] = {
    "zlib": lambda content: zlib.compress(content, 6),
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_RAW, filters=LZMA_FILTERS),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """Booleans, integers or floats (n,), or vectors of them (n, d...). What is null holds zero."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    """(n,) False where null; None when nothing is."""

    def __len__(self) -> int:
        return len(self.values)

    def plain(self) -> bytes:
        """Little-endian values, then the packed bits of `valid`."""
        values = self.values.astype(self.values.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(values).tobytes() + packed_bits(self.valid)

    def checksum(self) -> int:
        """CRC-32 of the plain encoding."""
        return zlib.crc32(self.plain())


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Strings or byte strings (n,): distinct ones, and the index of each row's; -1 is null."""

    levels: Sequence[bytes]
    codes: NDArray[np.int64]
    is_text: bool

    def __len__(self) -> int:
        return len(self.codes)

    def plain(self) -> bytes:
        """u32 length of every row (2**32 - 1 for null), then all bytes."""
        lengths = np.array([*map(len, self.levels), 0xFFFFFFFF], "<u4")[self.codes]
        levels = [*self.levels, b""]
        return lengths.tobytes() + b"".join(map(levels.__getitem__, self.codes.tolist()))

    def checksum(self) -> int:
        """CRC-32 of the levels and the codes, which give the plain encoding."""
        return zlib.crc32(self.codes.astype("<i8").tobytes(), zlib.crc32(joined(self.levels)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Opaque:
    """Rows of any other type (n), as bytes that only Arrow reads."""

    content: bytes
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def plain(self) -> bytes:
        """The content."""
        return self.content

    def checksum(self) -> int:
        """CRC-32 of the content."""
        return zlib.crc32(self.content)


ColumnData = Numbers | Texts | Opaque


def texts_of(values: Sequence[bytes | None], *, is_text: bool) -> Texts:
    """Rows as distinct levels: by falling frequency when they are few, else as they come."""
    seen: dict[bytes | None, int] = {}
    codes = np.fromiter((seen.setdefault(value, len(seen)) for value in values), np.int64, len(values))
    return ordered_texts(list(seen), codes, is_text=is_text)


def ordered_texts(levels: Sequence[bytes | None], codes: NDArray[np.int64], *, is_text: bool) -> Texts:
    """Levels that occur, None made -1, by falling frequency when they are at most 4,096, else by first row."""
    counts = np.bincount(codes, minlength=len(levels))
    occurring = [index for index, level in enumerate(levels) if counts[index] and level is not None]
    if len(occurring) <= 4096:
        occurring.sort(key=lambda index: (-counts[index], levels[index]))
    elif len(occurring) < len(levels) or len(codes):
        first = np.full(len(levels), len(codes))
        np.minimum.at(first, codes, np.arange(len(codes)))
        occurring.sort(key=first.__getitem__)
    place = np.full(len(levels), -1, np.int64)
    place[occurring] = np.arange(len(occurring))
    kept = [level for index in occurring if (level := levels[index]) is not None]
    return Texts(levels=kept, codes=place[codes] if len(codes) else codes, is_text=is_text)


def joined(levels: Sequence[bytes]) -> bytes:
    """u32 length of every level, then all bytes."""
    return np.array([len(level) for level in levels], "<u4").tobytes() + b"".join(levels)


def split(content: bytes, num_levels: int) -> list[bytes]:
    """The levels that `joined` joined."""
    ends = np.cumsum(np.frombuffer(content, "<u4", num_levels), dtype=np.int64) + 4 * num_levels
    bounds = [4 * num_levels, *ends.tolist()]
    if bounds[-1] != len(content):
        raise CorruptFileError("the distinct texts of a column have other lengths than stated; the file is damaged")
    return [content[first:last] for first, last in pairwise(bounds)]


def packed_bits(valid: NDArray[np.bool_] | None) -> bytes:
    """(n,) bits, eight a byte; nothing for None."""
    return b"" if valid is None else np.packbits(valid).tobytes()


def pack(content: bytes, *, item_size: int = 1, effort: int = 1, rival_bytes: float = math.inf) -> tuple[str, bytes]:
    """The smallest of `content` raw, by zlib or by lzma, its bytes in order or sorted by their place in the item.

    Where a sample comes nowhere near `rival_bytes`, the size of another encoding, the whole is not tried.
    """
    orders = {"": content}
    if item_size > 1:
        orders["shuffled "] = shuffled(content, item_size)
    best = ("raw", content)
    for order, arranged in orders.items():
        for codec, compressed in _CODECS.items():
            if codec == "lzma" and effort < 2 and len(content) > 1 << 16:
                continue
            if len(content) > 2 * SAMPLE_BYTES and math.isfinite(rival_bytes):
                middle = (len(content) - SAMPLE_BYTES) // 2
                sample = compressed(arranged[middle : middle + SAMPLE_BYTES])
                if len(sample) / SAMPLE_BYTES * len(content) > SAMPLE_MARGIN * rival_bytes:
                    continue
            stored = compressed(arranged)
            if len(stored) < len(best[1]):
                best = (order + codec, stored)
    return best


def unpack(codec: str, stored: bytes, num_bytes: int, *, item_size: int = 1) -> bytes:
    """The content that `pack` packed, of a size known beforehand.

    Raises CorruptFileError when it has another size.
    """
    if not 0 <= num_bytes <= MAX_SECTION_BYTES:
        raise CorruptFileError(f"a section claims {num_bytes} bytes; the file is damaged")
    order, _, method = codec.rpartition(" ")
    if method == "zlib":
        content = zlib.decompressobj().decompress(stored, num_bytes + 1)
    elif method == "lzma":
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
        content = decompressor.decompress(stored, num_bytes + 1) if num_bytes else b""
    elif method == "raw":
        content = stored
    else:
        raise CorruptFileError(f"a section is stored by {codec!r}, which this version does not know; upgrade parvae")
    if len(content) != num_bytes:
        raise CorruptFileError(f"a section holds {len(content)} bytes instead of {num_bytes}; the file is damaged")
    return unshuffled(content, item_size) if order else content


def shuffled(content: bytes, item_size: int) -> bytes:
    """First bytes of all items, then second bytes, ...; what is no whole item stays at the end."""
    whole = len(content) // item_size * item_size
    table = np.frombuffer(content, np.uint8, whole).reshape(-1, item_size)
    return np.ascontiguousarray(table.T).tobytes() + content[whole:]


def unshuffled(content: bytes, item_size: int) -> bytes:
    """The content that `shuffled` arranged."""
    whole = len(content) // item_size * item_size
    table = np.frombuffer(content, np.uint8, whole).reshape(item_size, -1)
    return np.ascontiguousarray(table.T).tobytes() + content[whole:]
