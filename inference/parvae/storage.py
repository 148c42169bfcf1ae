"""Places where files are read and written whole: a local path, or a URL that is used like one.

A local place is a plain `pathlib.Path`. Needs pyarrow; imported late.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from parvae import bundle
from parvae.files import filesystem_of

OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
"""Filesystems of pyarrow where an object appears when its upload is complete, and folders are only names."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file or folder behind a URL, with the part of pathlib's interface that parvae needs.

    Parameters of the URL (`?endpoint_override=...`) stay with every place below it.
    """

    filesystem: pafs.FileSystem = field(compare=False, repr=False)
    scheme: str
    path: str
    """Inside the filesystem; in an object store the bucket comes first."""
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> Remote:
        return self._at(posixpath.join(self.path, name))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return posixpath.splitext(self.path)[1]

    @property
    def parent(self) -> Remote:
        """The folder that holds it."""
        return self._at(posixpath.dirname(self.path))

    def with_name(self, name: str) -> Remote:
        """Another file in the same folder."""
        return self.parent / name

    def absolute(self) -> Remote:
        """Itself: a URL is absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is a file or a folder; in an object store a folder is what something lies below."""
        return bool(self._type() != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._type() == pafs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        return bool(self._type() == pafs.FileType.Directory)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        if not missing_ok or self.is_file():
            self.filesystem.delete_file(self.path)

    def replace_with(self, content: bytes | pa.Buffer) -> None:
        """Write the file so that readers see the old one or the whole new one."""
        if self.filesystem.type_name in OBJECT_STORES:
            self._send(self.path, content)
            return
        self.filesystem.create_dir(self.parent.path, recursive=True)
        temporary = f"{self.parent.path}/.{self.name}.{os.getpid()}.tmp"
        self._send(temporary, content)
        self.filesystem.move(temporary, self.path)

    def _send(self, path: str, content: bytes | pa.Buffer) -> None:
        # One write: a stream that is closed after half of it would leave half an object.
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def _type(self) -> pafs.FileType:
        return self.filesystem.get_file_info(self.path).type

    def _at(self, path: str) -> Remote:
        return Remote(filesystem=self.filesystem, scheme=self.scheme, path=path, query=self.query)


Place = Path | Remote


def place_of(address: str | Path | Remote) -> Place:
    """The local path or the remote file that an address names.

    Raises DataError when nothing can reach its kind of URL.
    """
    if isinstance(address, (Path, Remote)) or "://" not in address:
        return Path(address) if isinstance(address, str) else address
    filesystem, path = filesystem_of(address)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    scheme, _, rest = address.partition("://")
    return Remote(filesystem=filesystem, scheme=scheme, path=path.rstrip("/"), query=rest.partition("?")[2])


def write_whole(place: Place, content: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, also after a power cut."""
    if isinstance(place, Remote):
        place.replace_with(content)
    else:
        bundle.write_whole(place, content)
