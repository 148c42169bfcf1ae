"""One block: the rows of a row group, every column in the smallest of its encodings, verified before it is written.

    "BLK1" | u32 size of all that follows the header | u32 size of the facts | u32 index | u32 rows | u32 CRC
    facts (JSON, zlib) | sections, each with its size and CRC-32 in the facts

The CRC covers the header and the facts. Columns of whole numbers share one rANS stream, whose tables are a section too.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import Decoder
from parvae.vaez.bounds import Bound, Promise
from parvae.vaez.choice import Chosen, best_form
from parvae.vaez.columns import ColumnData, Numbers, Opaque, Texts, joined, pack, packed_bits, split, unpack
from parvae.vaez.forms import Formed, values_from
from parvae.vaez.known import CodecOfFile, Known
from parvae.vaez.stream import decode_columns, encode_columns

HEADER = struct.Struct("<4s5I")
TAG = b"BLK1"
MAX_ROWS = 1 << 24
_DAMAGE = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    AttributeError,
    MemoryError,
)


class _Sections:
    """Byte strings of a block, named by their number."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def add(self, content: bytes) -> int:
        self.contents.append(content)
        return len(self.contents) - 1

    def add_packed(self, content: bytes, *, item_size: int = 1, effort: int = 2) -> dict[str, Any]:
        codec, stored = pack(content, item_size=item_size, effort=effort)
        return {"section": self.add(stored), "codec": codec, "bytes": len(content), "item": item_size}


def encode_block(
    columns: Sequence[ColumnData],
    bounds: Sequence[Bound],
    index: int,
    *,
    effort: int = 2,
    codec: CodecOfFile | None = None,
) -> bytes:
    """The block of columns (n rows each) under these bounds, decoded once to prove it; plain where that failed.

    With a codec it is the smaller one of the blocks with and without it.
    """
    content = _encoded(columns, bounds, index, effort)
    if codec is not None:
        content = min(content, _encoded(columns, bounds, index, effort, codec), key=len)
    _, decoded = decode_block(content, codec=codec)
    kept = all(
        keeps(column, again, bound) for column, again, bound in zip(columns, decoded.values(), bounds, strict=True)
    )
    plain = _encoded(columns, bounds, index, effort=0)
    return content if kept and len(content) <= len(plain) else plain


def keeps(column: ColumnData, again: ColumnData, bound: Bound) -> bool:
    """Whether a decoded column is what its bound promises: the same bits, or close enough and null where it was."""
    if type(column) is not type(again) or len(column) != len(again):
        return False
    if not isinstance(column, Numbers) or not isinstance(again, Numbers):
        return column.plain() == again.plain()
    if column.plain() == again.plain():
        return True
    if bound.promise is Promise.LOSSLESS or packed_bits(column.valid) != packed_bits(again.valid):
        return False
    x, y = column.values, again.values
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if x.dtype.kind in "iu":
        differences = np.where(
            x > y, x.astype(np.uint64) - y.astype(np.uint64), y.astype(np.uint64) - x.astype(np.uint64)
        )
        return bound.promise is Promise.ABSOLUTE and bool(np.all(differences <= np.uint64(min(bound.value, 2.0**62))))
    same = x.view(f"u{x.dtype.itemsize}") == y.view(f"u{x.dtype.itemsize}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    reach = bound.value if bound.promise is Promise.ABSOLUTE else bound.pointwise * np.abs(x)
    special = ~np.isfinite(x) | ((x == 0) & np.signbit(x))
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.all(same | (~special & (np.abs(x - y) <= reach))))


def _encoded(
    columns: Sequence[ColumnData],
    bounds: Sequence[Bound],
    index: int,
    effort: int,
    codec: CodecOfFile | None = None,
) -> bytes:
    sections = _Sections()
    entries: list[dict[str, Any]] = []
    formed: dict[int, Chosen] = {}
    num_rows = len(columns[0]) if columns else 0
    for place, (column, bound) in enumerate(zip(columns, bounds, strict=True)):
        is_known = codec is not None and codec.knows(place, column)
        entry, chosen = _column_entry(column, bound, sections, effort, is_known=is_known)
        entries.append(entry)
        if chosen is not None:
            formed[place] = chosen
    facts: dict[str, Any] = {"columns": entries}
    if formed:
        coded = {
            place: dataclasses.replace(chosen.coded, known=_known(codec, place, columns[place], chosen.formed))
            for place, chosen in formed.items()
        }
        encoded = encode_columns(coded, num_rows)
        for place, entry in encoded.entries.items():
            entries[place] |= entry | {"crc": _decoded_checksum(columns[place], formed[place].formed)}
        facts["stream"] = {
            "order": encoded.order,
            "tables": sections.add_packed(encoded.tables),
            "section": sections.add(encoded.stream.content),
            "lanes": encoded.stream.lanes,
        }
    facts["sections"] = [[len(content), zlib.crc32(content)] for content in sections.contents]
    stored_facts = zlib.compress(json.dumps(facts, separators=(",", ":")).encode(), 9)
    body = b"".join(sections.contents)
    head = struct.pack("<4s4I", TAG, len(stored_facts) + len(body), len(stored_facts), index, num_rows)
    return head + struct.pack("<I", zlib.crc32(stored_facts, zlib.crc32(head))) + stored_facts + body


def _column_entry(
    column: ColumnData, bound: Bound, sections: _Sections, effort: int, *, is_known: bool
) -> tuple[dict[str, Any], Chosen | None]:
    """The facts of one column; its plain encoding packed, or the numbers that go to the stream."""
    entry: dict[str, Any] = {"kind": type(column).__name__.lower()}
    if isinstance(column, Numbers):
        entry |= {"dtype": column.values.dtype.newbyteorder("<").str, "shape": list(column.values.shape[1:])}
        entry["nulls"] = column.valid is not None
    if isinstance(column, Texts):
        entry |= {"is_text": column.is_text, "levels": sections.add_packed(joined(column.levels))}
        entry["num_levels"] = len(column.levels)
    item_size = column.values.dtype.itemsize if isinstance(column, Numbers) else 8 if isinstance(column, Texts) else 1
    content = column.codes.astype("<i8").tobytes() if isinstance(column, Texts) else column.plain()
    if effort and len(column) and not isinstance(column, Opaque):
        best = best_form(column, bound, deltas=not is_known)
        if best is not None and is_known:  # networks see only what is in the stream
            _add_form(entry, column, best.formed, sections)
            return entry, best
        if best is not None:
            codec, stored = pack(content, item_size=item_size, effort=effort, rival_bytes=best.num_bits / 8)
            if best.num_bits / 8 < len(stored):
                _add_form(entry, column, best.formed, sections)
                return entry, best
            entry["plain"] = {"section": sections.add(stored), "codec": codec, "bytes": len(content), "item": item_size}
            return entry | {"crc": column.checksum()}, None
    if effort:
        entry["plain"] = sections.add_packed(content, item_size=item_size, effort=effort)
    else:
        entry["plain"] = {"section": sections.add(content), "codec": "raw", "bytes": len(content), "item": item_size}
    return entry | {"crc": column.checksum()}, None


def _known(codec: CodecOfFile | None, place: int, column: ColumnData, formed: Formed) -> Known | None:
    """What the codec, if there is one, knows of a column in this form."""
    if codec is None or not isinstance(column, Numbers) or not codec.knows(place, column):
        return None
    dtype = column.values.dtype
    return codec.known(place, form=formed.form, facts=formed.facts, levels=formed.levels, dtype=dtype)


def _add_form(entry: dict[str, Any], column: Numbers | Texts, formed: Formed, sections: _Sections) -> None:
    """Write down what the way back from the numbers needs."""
    entry |= {"form": formed.form, "facts": formed.facts, "count": len(formed.numbers)}
    if isinstance(column, Texts):
        return
    item_size = column.values.dtype.itemsize
    if column.valid is not None:
        entry["valid"] = sections.add_packed(packed_bits(column.valid))
    if formed.levels is not None:
        entry["distinct"] = sections.add_packed(formed.levels.tobytes(), item_size=item_size)
    if formed.exceptions is not None and formed.exceptions.any():
        values = column.values if column.valid is None else column.values[column.valid]
        raw = np.ascontiguousarray(values).reshape(-1)[formed.exceptions]
        positions = np.diff(np.flatnonzero(formed.exceptions), prepend=0).astype("<u4")
        entry["exceptions"] = [
            sections.add_packed(positions.tobytes(), item_size=4),
            sections.add_packed(raw.tobytes(), item_size=item_size),
        ]


def _decoded_checksum(column: ColumnData, formed: Formed) -> int:
    if isinstance(column, Texts):
        return column.checksum()
    assert isinstance(column, Numbers)
    values = values_from(formed.form, formed.numbers, formed.facts, formed.levels, column.values.dtype)
    present = column.values if column.valid is None else column.values[column.valid]
    if formed.exceptions is not None:
        values = np.where(formed.exceptions, np.ascontiguousarray(present).reshape(-1), values)
    return _placed(values, column.values.shape, column.valid).checksum()


def _placed(values: NDArray[Any], shape: tuple[int, ...], valid: NDArray[np.bool_] | None) -> Numbers:
    """Present values back among the nulls."""
    if valid is None:
        return Numbers(values=values.reshape(shape))
    everywhere = np.zeros(shape, values.dtype)
    everywhere[valid] = values.reshape(-1, *shape[1:])
    return Numbers(values=everywhere, valid=valid)


def read_header(header: bytes) -> tuple[int, int, int, int]:
    """Bytes after the header, bytes of facts, index and rows.

    Raises CorruptFileError when it is no header of a block.
    """
    if len(header) < HEADER.size or header[:4] != TAG:
        raise CorruptFileError("a block is cut off or does not begin where it should; the file is damaged")
    _, size, facts_size, index, num_rows, _ = HEADER.unpack(header)
    if facts_size > size or num_rows > MAX_ROWS:
        raise CorruptFileError("the header of a block is damaged")
    return size, facts_size, index, num_rows


def decode_block(
    content: bytes, wanted: Sequence[int] | None = None, *, codec: CodecOfFile | None = None
) -> tuple[int, dict[int, ColumnData]]:
    """The index of a block and its columns by number (all of them unless `wanted` names some).

    Raises CorruptFileError when a checksum, a size or the end of a stream is wrong.
    """
    size, facts_size, index, num_rows = read_header(content[: HEADER.size])
    stored_facts = content[HEADER.size : HEADER.size + facts_size]
    if len(content) != HEADER.size + size:
        raise CorruptFileError(f"block {index} is cut off")
    if zlib.crc32(stored_facts, zlib.crc32(content[: HEADER.size - 4])) != HEADER.unpack(content[: HEADER.size])[5]:
        raise CorruptFileError(f"the facts of block {index} differ from their checksum; the file is damaged")
    try:
        facts = json.loads(zlib.decompress(stored_facts))
        reader = _Reader(facts, content[HEADER.size + facts_size :], num_rows, codec)
        return index, reader.columns(range(len(facts["columns"])) if wanted is None else wanted)
    except CorruptFileError as error:
        raise CorruptFileError(f"block {index}: {error}") from error
    except _DAMAGE as error:
        raise CorruptFileError(f"block {index} cannot be decoded ({error!r}); the file is damaged") from error


class _Reader:
    """The columns of one block."""

    def __init__(self, facts: Mapping[str, Any], body: bytes, num_rows: int, codec: CodecOfFile | None) -> None:
        self._facts, self._body, self._num_rows, self._codec = facts, body, num_rows, codec
        ends = np.cumsum([size for size, _ in facts["sections"]], dtype=np.int64).tolist()
        if (ends[-1] if ends else 0) != len(body):
            raise CorruptFileError("its sections do not fill it; the file is damaged")
        self._starts = [0, *ends]

    def columns(self, wanted: Sequence[int]) -> dict[int, ColumnData]:
        numbers: dict[int, NDArray[np.integer[Any]]] = {}
        if any("form" in self._facts["columns"][place] for place in wanted):
            numbers = self._stream(wanted)
        found = {place: self._column(self._facts["columns"][place], numbers.get(place)) for place in wanted}
        for place, column in found.items():
            if len(column) != self._num_rows or column.checksum() != self._facts["columns"][place]["crc"]:
                raise CorruptFileError(f"column {place} decodes to other values than were written; the file is damaged")
        return found

    def _section(self, number: int) -> bytes:
        content = self._body[self._starts[number] : self._starts[number + 1]]
        if zlib.crc32(content) != self._facts["sections"][number][1]:
            raise CorruptFileError(f"section {number} differs from its checksum; the file is damaged")
        return content

    def _unpacked(self, entry: Mapping[str, Any]) -> bytes:
        return unpack(entry["codec"], self._section(entry["section"]), entry["bytes"], item_size=entry["item"])

    def _stream(self, wanted: Sequence[int]) -> dict[int, NDArray[np.integer[Any]]]:
        stream = self._facts["stream"]
        tables = self._unpacked(stream["tables"])
        decoder = Decoder(self._section(stream["section"]), stream.get("lanes"))  # none before format 3
        columns = self._facts["columns"]
        return decode_columns(
            decoder, tables, stream["order"], columns, self._num_rows, self._valid, wanted, self._known
        )

    def _known(self, place: int) -> Known | None:
        """What the codec knows of a column that is in the stream."""
        entry = self._facts["columns"][place]
        if self._codec is None or place not in self._codec.numbers or entry["kind"] != "numbers" or entry["shape"]:
            return None
        dtype = np.dtype(entry["dtype"])
        levels = self._levels(entry, dtype)
        return self._codec.known(place, form=entry["form"], facts=entry["facts"], levels=levels, dtype=dtype)

    def _levels(self, entry: Mapping[str, Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        return np.frombuffer(self._unpacked(entry["distinct"]), dtype) if "distinct" in entry else None

    def _valid(self, entry: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        if "valid" not in entry:
            return None
        bits = np.frombuffer(self._unpacked(entry["valid"]), np.uint8)
        return np.unpackbits(bits, count=self._num_rows).astype(bool)

    def _column(self, entry: Mapping[str, Any], numbers: NDArray[np.integer[Any]] | None) -> ColumnData:
        if entry["kind"] == "opaque":
            return Opaque(content=self._unpacked(entry["plain"]), num_rows=self._num_rows)
        if entry["kind"] == "texts":
            return self._texts(entry, numbers)
        dtype, shape = np.dtype(entry["dtype"]), (self._num_rows, *entry["shape"])
        if numbers is None:
            content = self._unpacked(entry["plain"])
            count = int(np.prod(shape))
            values = np.frombuffer(content, dtype, count).reshape(shape)
            packed = np.frombuffer(content, np.uint8, offset=count * dtype.itemsize)
            return Numbers(
                values=values,
                valid=np.unpackbits(packed, count=self._num_rows).astype(bool) if entry["nulls"] else None,
            )
        levels = self._levels(entry, dtype)
        present = values_from(entry["form"], numbers, entry["facts"], levels, dtype)
        if "exceptions" in entry:
            positions, raw = map(self._unpacked, entry["exceptions"])
            present = present.copy()
            present[np.cumsum(np.frombuffer(positions, "<u4"), dtype=np.int64)] = np.frombuffer(raw, dtype)
        return _placed(present, shape, self._valid(entry))

    def _texts(self, entry: Mapping[str, Any], numbers: NDArray[np.integer[Any]] | None) -> Texts:
        levels = split(self._unpacked(entry["levels"]), entry["num_levels"])
        if numbers is None:
            numbers = np.frombuffer(self._unpacked(entry["plain"]), "<i8")
        elif entry["facts"].get("delta"):
            numbers = np.cumsum(numbers, dtype=np.int64)
        if len(numbers) and not -1 <= int(numbers.min()) <= int(numbers.max()) < len(levels):
            raise CorruptFileError("a text column points outside its distinct texts; the file is damaged")
        return Texts(levels=levels, codes=numbers.astype(np.int64, copy=False), is_text=entry["is_text"])
