"""The file: header, head record, blocks, footer. Layout in inference/VAEZ.md; every byte lies under a checksum."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from parvae.errors import BundleError, CorruptFileError, WrongModelError
from parvae.vaez.block import HEADER as BLOCK_HEADER
from parvae.vaez.block import TAG as BLOCK_TAG
from parvae.vaez.block import decode_block, encode_block, read_header
from parvae.vaez.bounds import Bound
from parvae.vaez.codec import Codec
from parvae.vaez.columns import ColumnData
from parvae.vaez.known import CodecOfFile

MAGIC = b"\x93VAEZ\r\n\x1a"
MAJOR, MINOR = 4, 0
MAJOR_WITHOUT_CODEC = 3
"""What a file without a codec needs of its reader."""
CARRIES_CODEC = 1
"""Flag of a file that carries its codec."""
NO_CODEC = bytes(32)
_HEADER = struct.Struct("<8sHHI32s12sI")
_RECORD = struct.Struct("<4sII")
_TAIL = struct.Struct("<I8s")
_END = b"VAEZEOF1"
MAX_FACTS_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class BlockPlace:
    """Where a block lies and which rows it holds."""

    offset: int
    num_bytes: int
    first_row: int
    num_rows: int


class Writer:
    """Writes a file front to back, one block in memory at a time."""

    def __init__(
        self,
        sink: BinaryIO,
        head: Mapping[str, Any],
        bounds: Sequence[Bound],
        *,
        effort: int,
        codec: Codec | None = None,
        carry: bool = False,
    ) -> None:
        """With a codec its readers need it too, unless the file is to `carry` it."""
        self._sink, self._bounds, self._effort = sink, bounds, effort
        self._codec = None if codec is None else CodecOfFile.of(codec, [column["name"] for column in head["columns"]])
        self._offset = 0
        self._blocks: list[list[int]] = []
        major = MAJOR_WITHOUT_CODEC if codec is None else MAJOR
        flags, needed = CARRIES_CODEC if carry else 0, NO_CODEC if codec is None else codec.id
        header = _HEADER.pack(MAGIC, major, MINOR, flags, needed, bytes(12), 0)[:-4]
        self._write(header + struct.pack("<I", zlib.crc32(header)))
        self._write(_record(b"HEAD", head))
        if carry and codec is not None:
            self._write(_packed(b"CODE", codec.to_bytes()))

    def add(self, columns: Sequence[ColumnData]) -> None:
        """Append the rows of `columns` as one block."""
        content = encode_block(columns, self._bounds, len(self._blocks), effort=self._effort, codec=self._codec)
        self._blocks.append([self._offset, len(content), len(columns[0]) if columns else 0])
        self._write(content)

    def finish(self) -> int:
        """Write the footer; returns the bytes of the whole file."""
        footer = _record(b"FOOT", {"blocks": self._blocks, "numpy": np.__version__})
        self._write(footer + _TAIL.pack(len(footer), _END))
        return self._offset

    def _write(self, content: bytes) -> None:
        self._sink.write(content)
        self._offset += len(content)


class Reader:
    """Reads a file by block and by column.

    `salvage` reads what is whole of a file whose end is missing or damaged. `codec` is that of the model that the file
    needs; without it only what it says of itself can be read.
    Raises CorruptFileError when the file is damaged.
    """

    def __init__(self, source: BinaryIO, *, salvage: bool = False, codec: Codec | None = None) -> None:
        self._source = source
        self.num_bytes = source.seek(0, 2)
        # `codec_id` is that of the codec that the blocks need, all zeros for none.
        self.major, self.carries_codec, self.codec_id = self._check_header(self._read(0, _HEADER.size))
        self.head, first = self._record(b"HEAD", _HEADER.size)
        if self.carries_codec:
            content, first = self._payload(b"CODE", first)
            codec = self._carried(content)
        self._codec = codec
        try:
            self.blocks = self._listed(first)
        except CorruptFileError:
            if not salvage:
                raise
            self.blocks = list(self._found(first))

    @property
    def num_rows(self) -> int:
        """Rows of all blocks."""
        return sum(block.num_rows for block in self.blocks)

    def block(self, number: int, wanted: Sequence[int] | None = None) -> dict[int, ColumnData]:
        """The columns of one block by number."""
        place = self.blocks[number]
        index, columns = decode_block(self._read(place.offset, place.num_bytes), wanted, codec=self._codec_of_file())
        if index != number:
            raise CorruptFileError(f"block {index} stands where block {number} should; the file is damaged")
        return columns

    def _codec_of_file(self) -> CodecOfFile | None:
        """The codec that the blocks need.

        Raises WrongModelError when another one was given, or none.
        """
        if self.codec_id == NO_CODEC:
            return None
        wanted = self.codec_id.hex()[:12]
        if self._codec is None:
            raise WrongModelError(
                f"the .vaez file was compressed with the codec {wanted} of a model; give that model.vae with --model"
            )
        if self._codec.id != self.codec_id:
            raise WrongModelError(
                f"the .vaez file was compressed with the codec {wanted} of a model, and the given one has "
                f"{self._codec.id.hex()[:12]}; give the model.vae that it was compressed with"
            )
        return CodecOfFile.of(self._codec, [column["name"] for column in self.head["columns"]])

    def _carried(self, content: bytes) -> Codec:
        try:
            codec = Codec.from_bytes(content)
        except (BundleError, struct.error) as error:
            raise CorruptFileError(f"the codec that the .vaez file carries cannot be used: {error}") from error
        if codec.id != self.codec_id:
            raise CorruptFileError("the .vaez file carries another codec than it was compressed with; it is damaged")
        return codec

    def _check_header(self, header: bytes) -> tuple[int, bool, bytes]:
        if header[:8] != MAGIC:
            raise CorruptFileError("this is no .vaez file, or its first bytes are damaged; give one from vae compress")
        if len(header) < _HEADER.size or zlib.crc32(header[:-4]) != _HEADER.unpack(header)[-1]:
            raise CorruptFileError("the header of the .vaez file is damaged or cut off; copy the file again")
        _, major, _, flags, codec_id, _, _ = _HEADER.unpack(header)
        if major > MAJOR or flags & ~CARRIES_CODEC:
            raise CorruptFileError(
                f"the .vaez file has format {major} (flags {flags}), newer than format {MAJOR}; "
                "upgrade: pip install --upgrade parvae"
            )
        return int(major), bool(flags & CARRIES_CODEC), codec_id

    def _record(self, tag: bytes, offset: int) -> tuple[dict[str, Any], int]:
        content, end = self._payload(tag, offset)
        try:
            return json.loads(content), end
        except ValueError as error:
            raise CorruptFileError(f"the {tag.decode()} record of the .vaez file cannot be read ({error})") from error

    def _payload(self, tag: bytes, offset: int) -> tuple[bytes, int]:
        """What a record holds, and where it ends."""
        start = self._read(offset, _RECORD.size)
        if len(start) < _RECORD.size or start[:4] != tag:
            raise CorruptFileError(f"the .vaez file lacks its {tag.decode()} record; it is damaged or cut off")
        _, size, crc = _RECORD.unpack(start)
        payload = self._read(offset + _RECORD.size, min(size, self.num_bytes))
        if len(payload) != size or zlib.crc32(payload, zlib.crc32(start[:8])) != crc:
            raise CorruptFileError(f"the {tag.decode()} record of the .vaez file is damaged or cut off")
        try:
            content = zlib.decompressobj().decompress(payload, MAX_FACTS_BYTES)
        except zlib.error as error:
            raise CorruptFileError(f"the {tag.decode()} record of the .vaez file cannot be read ({error})") from error
        return content, offset + _RECORD.size + size

    def _listed(self, first: int) -> list[BlockPlace]:
        """The blocks as the footer lists them; together they fill the file."""
        tail = self._read(max(0, self.num_bytes - _TAIL.size), _TAIL.size)
        if len(tail) < _TAIL.size or tail[4:] != _END:
            raise CorruptFileError(
                "the end of the .vaez file is missing or damaged; vae decompress --salvage reads the rest"
            )
        footer_start = self.num_bytes - _TAIL.size - _TAIL.unpack(tail)[0]
        footer, end = self._record(b"FOOT", max(0, footer_start))
        places, row, offset = [], 0, first
        for start, num_bytes, num_rows in footer["blocks"]:
            if start != offset:
                raise CorruptFileError("the blocks of the .vaez file leave a gap; it is damaged")
            places.append(BlockPlace(offset=start, num_bytes=num_bytes, first_row=row, num_rows=num_rows))
            row, offset = row + num_rows, offset + num_bytes
        if offset != footer_start or end != self.num_bytes - _TAIL.size:
            raise CorruptFileError("the blocks of the .vaez file do not fill it; it is damaged")
        return places

    def _found(self, offset: int) -> Iterator[BlockPlace]:
        """Whole blocks one after the other, as far as they go."""
        row = 0
        while self._read(offset, 4) == BLOCK_TAG:
            try:
                size, _, _, num_rows = read_header(self._read(offset, BLOCK_HEADER.size))
                decode_block(self._read(offset, BLOCK_HEADER.size + size), codec=self._codec_of_file())
            except CorruptFileError:
                return
            yield BlockPlace(offset=offset, num_bytes=BLOCK_HEADER.size + size, first_row=row, num_rows=num_rows)
            row, offset = row + num_rows, offset + BLOCK_HEADER.size + size

    def _read(self, offset: int, num_bytes: int) -> bytes:
        self._source.seek(offset)
        return self._source.read(num_bytes)


def _record(tag: bytes, document: Mapping[str, Any]) -> bytes:
    return _packed(tag, json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())


def _packed(tag: bytes, content: bytes) -> bytes:
    payload = zlib.compress(content, 9)
    start = tag + struct.pack("<I", len(payload))
    return start + struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))) + payload
