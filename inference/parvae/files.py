"""Data sets as files: a file, a folder, a glob, a list, or any of these behind a URL. Needs pyarrow; imported late."""

from __future__ import annotations

import dataclasses
import fnmatch
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from parvae.errors import DataError, listed

SUFFIXES = (".parquet", ".pq")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A column that a folder above a file names as Hive does (`year=2020`), of one value."""

    name: str
    value: int | str | None
    is_integer: bool

    @property
    def field(self) -> pa.Field:
        """Name and type of the column: the same for every file, also where the value is null."""
        return pa.field(self.name, pa.int64() if self.is_integer else pa.string())


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One Parquet file of a data set."""

    filesystem: pafs.FileSystem
    path: str
    """Path inside the filesystem."""
    relative_path: str
    """Path below the folder or glob that named it; outputs are named by it."""
    num_bytes: int
    modified_ns: int
    partitions: tuple[Partition, ...] = ()

    def schema_with_partitions(self, schema: pa.Schema) -> pa.Schema:
        """The schema of the file with the columns of `partitions`, but those that the file itself holds."""
        for partition in self.partitions:
            if partition.name not in schema.names:
                schema = schema.append(partition.field)
        return schema

    def with_partitions(self, table: pa.Table) -> pa.Table:
        """Rows of the file with the columns of `partitions`, but those that the file itself holds."""
        for partition in self.partitions:
            if partition.name not in table.column_names:
                value = pa.scalar(partition.value, partition.field.type)
                table = table.append_column(partition.field, pa.repeat(value, table.num_rows))
        return table

    def open(self, *, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """The file, its footer read unless `metadata` is that footer.

        Raises DataError when it is no Parquet file.
        """
        try:
            return pq.ParquetFile(self.path, filesystem=self.filesystem, metadata=metadata)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as Parquet ({error}); replace it or leave it out") from error

    def require_unchanged(self) -> None:
        """Raise DataError when the file is gone, or its size or time of change is another than when it was found."""
        try:
            info = self.filesystem.get_file_info(self.path)
        except OSError as error:
            raise DataError(f"{self.path} cannot be reached ({error}); check the address and your access") from error
        if info.type != pafs.FileType.File:
            raise DataError(f"{self.path} is gone since the data set was planned; put it back or start again")
        if (info.size or 0, info.mtime_ns or 0) != (self.num_bytes, self.modified_ns):
            raise DataError(
                f"{self.path} changed since the data set was planned ({self.num_bytes:,} bytes then, {info.size:,} "
                "now); leave the files alone while they are read, and start again"
            )


def find_files(paths: Sequence[str]) -> list[DataFile]:
    """All Parquet files that `paths` name, in the order of `paths`, those of a folder or glob sorted by path.

    Hidden files and those that start with an underscore are left out of folders. Folders right above a file that are
    named as Hive does (`year=2020`) make columns of it.
    Raises DataError when a path does not exist, a folder or glob holds no Parquet file.
    """
    if not paths:
        raise DataError("no data given: name a Parquet file, a folder, a glob or a URL")
    files = [file for path in paths for file in _files_of(path)]
    return _with_partitions(list({file.path: file for file in files}.values()))


def filesystem_of(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that a path or URL names, and the path inside it."""
    if "://" not in path:
        return pafs.LocalFileSystem(), posixpath.abspath(path)
    try:
        filesystem, inside = pafs.FileSystem.from_uri(path)
        return filesystem, str(inside)
    except OSError as error:
        raise DataError(f"{path} cannot be reached ({error}); check the address and your access") from error
    except pa.ArrowInvalid:
        scheme = path.partition("://")[0]
        try:
            import fsspec

            filesystem, inside = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            raise DataError(f"{path}: no filesystem for {scheme}:// ({error}); install its fsspec package") from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inside


def _files_of(path: str) -> list[DataFile]:
    filesystem, inside = filesystem_of(path)
    try:
        info = filesystem.get_file_info(inside)
    except OSError as error:
        raise DataError(f"{path} cannot be reached ({error}); check the address and your access") from error
    if info.type == pafs.FileType.File:
        return [_data_file(filesystem, info, posixpath.dirname(inside))]
    parts = inside.split("/")
    magic = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), None)
    if info.type == pafs.FileType.Directory:  # also when its name looks like a pattern
        root, pattern = inside, None
    elif magic is not None:
        root, pattern = "/".join(parts[:magic]) or "/", parts[magic:]
    else:
        raise DataError(f"{path} does not exist; give a Parquet file, a folder, a glob or a URL")
    if filesystem.get_file_info(root).type != pafs.FileType.Directory:
        raise DataError(f"{path} does not exist; give a Parquet file, a folder, a glob or a URL")
    entries = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    found = [_data_file(filesystem, entry, root) for entry in entries if _is_data(entry, root, pattern)]
    if not found:
        kinds = sorted({posixpath.splitext(entry.path)[1] for entry in entries if entry.type == pafs.FileType.File})
        raise DataError(
            f"{path} holds no Parquet file (looked for {', '.join('*' + suffix for suffix in SUFFIXES)}; "
            f"there are files of kind {listed(kinds)})"
        )
    return sorted(found, key=lambda file: file.path)


def _with_partitions(files: list[DataFile]) -> list[DataFile]:
    """The files with what their folders say; a column is of whole numbers where all its values are."""
    named = [_partitions_in(file.path) for file in files]
    texts: dict[str, set[str]] = {}
    for pairs in named:
        for name, text in pairs:
            texts.setdefault(name, set()).update([] if text is None else [text])
    integers = {name for name, found in texts.items() if found and all(map(_INTEGER.fullmatch, found))}
    return [
        dataclasses.replace(
            file,
            partitions=tuple(
                Partition(
                    name=name,
                    value=text if text is None or name not in integers else int(text),
                    is_integer=name in integers,
                )
                for name, text in pairs
            ),
        )
        for file, pairs in zip(files, named, strict=True)
    ]


def _partitions_in(path: str) -> list[tuple[str, str | None]]:
    """Name and value of every folder `name=value` right above a file, the outermost first."""
    found: list[tuple[str, str | None]] = []
    for folder in reversed(path.split("/")[:-1]):
        name, equals, value = folder.partition("=")
        if not name or not equals:
            break
        found.append((unquote(name), None if value == HIVE_NULL else unquote(value)))
    return found[::-1]


def _is_data(entry: pafs.FileInfo, root: str, pattern: list[str] | None) -> bool:
    if entry.type != pafs.FileType.File:
        return False
    parts = posixpath.relpath(entry.path, root).split("/")
    if any(part.startswith((".", "_")) for part in parts):
        return False
    return entry.path.endswith(SUFFIXES) if pattern is None else _matches(parts, pattern)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Shell rules, segment by segment: * stays inside a folder, ** stands for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _data_file(filesystem: pafs.FileSystem, info: pafs.FileInfo, root: str) -> DataFile:
    return DataFile(
        filesystem=filesystem,
        path=info.path,
        relative_path=posixpath.relpath(info.path, root),
        num_bytes=info.size or 0,
        modified_ns=info.mtime_ns or 0,
    )
