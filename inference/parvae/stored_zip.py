"""Reading a stored zip from memory: the members as they lie there, found by the directory at the end.

Python's zipfile reads every kind of zip, but importing it took a quarter of what parvae adds to the time from a cold
start to a first score. Bundles are stored (not compressed), without comment, and below 4 GiB; anything else is refused.
Format: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (directory) and 4.3.16 (end of directory).
"""

from __future__ import annotations

import struct
import zlib

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED = 0


def read_stored_zip(content: bytes) -> dict[str, bytes]:
    """Members by name; of the first one, the table of contents, the CRC is checked (the others have hashes in it).

    Raises ValueError when the content is no such zip, or damaged where that can be seen.
    """
    if len(content) < _END.size:
        raise ValueError("it is too short for a zip file")
    signature, _, _, _, num_entries, _, position, _ = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06":
        raise ValueError("it does not end as a stored zip file does")
    members: dict[str, bytes] = {}
    for _ in range(num_entries):
        signature, _, _, _, method, _, _, *facts, offset = _ENTRY.unpack_from(content, position)
        crc, stored_size, size, name_size, extra_size, comment_size = facts[:6]
        if signature != b"PK\x01\x02":
            raise ValueError("its directory is damaged")
        name = content[position + _ENTRY.size : position + _ENTRY.size + name_size]
        position += _ENTRY.size + name_size + extra_size + comment_size
        if method != _STORED or stored_size != size:
            raise ValueError(f"its member {name!r} is compressed")
        member = _member(content, offset, name, size)
        if not members and zlib.crc32(member) != crc:
            raise ValueError(f"its member {name!r} is damaged")
        members[name.decode()] = member
    return members


def _member(content: bytes, position: int, name: bytes, size: int) -> bytes:
    local = _LOCAL.unpack_from(content, position)
    start = position + _LOCAL.size
    if local[0] != b"PK\x03\x04" or content[start : start + local[9]] != name:
        raise ValueError(f"its directory names a member {name!r} that is not there")
    start += local[9] + local[10]
    if start + size > len(content):
        raise ValueError(f"its member {name!r} is cut off")
    return content[start : start + size]
