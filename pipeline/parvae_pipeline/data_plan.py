"""What must be known of a data set before the first step: its units, and its schema.

Both are kept beside the run in one Parquet file, a row for each file of the data set. A file that has the size and the
time of change that it had is not read again; when all have, neither are the rows for their statistics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from parvae.files import DataFile, find_files
from parvae.schema import Schema
from parvae.storage import Place
from parvae_pipeline.config import DataSettings
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import Statistics, scan
from parvae_pipeline.units import Footer, Units, read_footers, units_of

SCHEMA_KEY, SCHEMA_OF_KEY = b"parvae.schema", b"parvae.schema_of"
Fingerprint = tuple[str, int, int]
"""Path, size in bytes, time of change in nanoseconds; 0 where a filesystem does not tell the time, and all is read."""


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The units of a data set and the roles of its columns."""

    units: Units
    schema: Schema
    to_keep: bytes | None
    """The file to keep beside the run; None when the one that is there says the same."""


@dataclass(frozen=True, kw_only=True)
class KeptPlan:
    """What an earlier plan knows of files."""

    footers: Mapping[Fingerprint, Footer] = field(default_factory=dict)
    schema: Schema | None = None
    schema_of: str = ""
    """Digest of the fingerprints of all files, and of the settings that roles follow from."""

    @classmethod
    def read(cls, place: Place) -> Self:
        """The plan that is kept at a place; an empty one where there is none, or it is damaged: it is made anew."""
        if not place.is_file():
            return cls()
        try:
            table = pq.ParquetFile(pa.BufferReader(place.read_bytes())).read(use_threads=False)
            metadata = table.schema.metadata or {}
            schema = Schema.from_json(json.loads(metadata[SCHEMA_KEY]))
            return cls(footers=_footers_in(table), schema=schema, schema_of=metadata[SCHEMA_OF_KEY].decode())
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return cls()


def plan_data(
    data: DataSettings,
    kept: KeptPlan,
    *,
    with_shapes: bool = True,
    read: Callable[[Sequence[DataFile]], Iterable[Footer]] = read_footers,
    scan: Callable[[Units], Statistics] = scan,
) -> DataPlan:
    """Plan the data set that `data` names; `read` and `scan` are asked for what is not kept.

    `with_shapes` is for `roles.infer_schema`.

    Raises DataError naming the file that is damaged, or that disagrees with others about its columns.
    """
    files = find_files(data.paths)
    prints: list[Fingerprint] = [(file.path, file.num_bytes, file.modified_ns) for file in files]
    missing = [file for file, known_as in zip(files, prints, strict=True) if known_as not in kept.footers]
    is_dated = all(modified_ns for _, _, modified_ns in prints)
    found = iter(read(missing))
    schemas = _Schemas()
    footers = (kept.footers[known_as] if known_as in kept.footers else next(found) for known_as in prints)
    units = units_of(files, map(schemas.shared, footers))
    roles_follow_from = [prints, sorted(data.columns.items()), data.label, with_shapes]
    schema_of = hashlib.sha256(json.dumps(roles_follow_from).encode()).hexdigest()
    if kept.schema is not None and kept.schema_of == schema_of and is_dated:
        return DataPlan(units=units, schema=kept.schema, to_keep=None)
    schema = infer_schema(
        scan(units),
        overrides=data.columns,
        label=data.label,
        with_shapes=with_shapes,
        folder_columns=units.folder_columns,
    )
    metadata = {SCHEMA_KEY: json.dumps(schema.to_json()), SCHEMA_OF_KEY: schema_of}
    return DataPlan(units=units, schema=schema, to_keep=_parquet(units, schemas, metadata))


class _Schemas:
    """The different schemas of files. Most often there is one, and a plan must not hold it once a file."""

    def __init__(self) -> None:
        self.known: list[pa.Schema] = []
        self.of_file: list[int] = []

    def shared(self, footer: Footer) -> Footer:
        """The same footer, with the schema of an earlier one where they are equal."""
        equal = (
            index for index, known in enumerate(self.known) if known is footer.schema or known.equals(footer.schema)
        )
        index = next(equal, len(self.known))
        if index == len(self.known):
            self.known.append(footer.schema)
        self.of_file.append(index)
        return dataclasses.replace(footer, schema=self.known[index])


def _parquet(units: Units, schemas: _Schemas, metadata: Mapping[bytes, str]) -> bytes:
    edges = pa.array(np.searchsorted(units.file_index, np.arange(len(units.files) + 1)).astype(np.int32))
    serialized = pa.array([schema.serialize().to_pybytes() for schema in schemas.known], pa.binary())
    table = pa.table(
        {
            "path": [file.path for file in units.files],
            "num_bytes": pa.array([file.num_bytes for file in units.files], pa.int64()),
            "modified_ns": pa.array([file.modified_ns for file in units.files], pa.int64()),
            "schema": pa.DictionaryArray.from_arrays(pa.array(schemas.of_file, pa.int32()), serialized),
            "row_groups": pa.ListArray.from_arrays(edges, pa.array(units.row_group)),
            "rows_of_groups": pa.ListArray.from_arrays(edges, pa.array(units.num_rows)),
            "bytes_of_groups": pa.ListArray.from_arrays(edges, pa.array(units.num_bytes)),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue().to_pybytes())


def _footers_in(table: pa.Table) -> dict[Fingerprint, Footer]:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    schemas = [pa.ipc.read_schema(pa.py_buffer(text)) for text in columns["schema"].dictionary.to_pylist()]
    names = ("row_groups", "rows_of_groups", "bytes_of_groups")
    edges = columns[names[0]].offsets.to_pylist()
    groups, num_rows, num_bytes = (columns[name].values.to_numpy() for name in names)
    prints = zip(*(columns[name].to_pylist() for name in ("path", "num_bytes", "modified_ns")), strict=True)
    return {
        known_as: Footer(
            schema=schemas[index],
            row_group=groups[first:last],
            num_rows=num_rows[first:last],
            num_bytes=num_bytes[first:last],
        )
        for known_as, index, first, last in zip(
            prints, columns["schema"].indices.to_pylist(), edges, edges[1:], strict=False
        )
        if known_as[2]
    }
