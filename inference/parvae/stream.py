"""One Parquet file in, one out: batches are read, worked on and written at the same time, in bounded memory.

The output has the rows of the input in their order, and its row groups.
"""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from parvae.arrow import without_structs
from parvae.errors import DataError, OutputError
from parvae.files import DataFile
from parvae.storage import Place, Remote
from parvae.tally import Tally

BATCH_ROWS, BATCH_BYTES = 16_384, 32 << 20
BATCHES_AHEAD = 2
"""Batches in hand beside the one that each thread works on."""
FILES_AT_A_TIME = 2
"""While one is written to its end, the next is worked on already."""
UNIQUE_VALUES = frozenset({"score", "code"})
"""Columns whose values rarely repeat, so that a dictionary of them only costs time."""
TALLY_KEY = "parvae.tally"

Transform = Callable[[pa.Table], tuple[pa.Table, Tally]]
"""The rows of the output that a batch becomes, and what there is to count; called from several threads."""


class Workers:
    """Threads that transform batches, shared by the files that are under way; those files; and the word to stop."""

    def __init__(self, threads: int) -> None:
        self.threads, self.stop = threads, threading.Event()
        self.batches, self.files = ThreadPoolExecutor(threads), ThreadPoolExecutor(FILES_AT_A_TIME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.files.shutdown(cancel_futures=True)
        self.batches.shutdown(cancel_futures=True)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The work was given up; nobody waits for it."""


Results = Generator[tuple[int, tuple[pa.Table, Tally]]]
"""(row group, what became of one of its batches), in the order of the rows."""


def write(results: Results, path: Path, *, stamp: Mapping[str, str]) -> tuple[int, Tally]:
    """Write results as a Parquet file at `path`; returns the number of rows and the sum of the tallies.

    `stamp` and the tally go into the metadata of the file. Raises OutputError when it cannot be written.
    """
    writer: pq.ParquetWriter | None = None
    num_rows, tally = 0, Tally.empty()
    try:
        for _, parts in groupby(results, key=itemgetter(0)):
            tables = []
            for _, (table, counted) in parts:
                tables.append(table)
                tally += counted
            group = pa.concat_tables(tables)
            with writing(path):
                writer = writer or open_writer(path, group.schema, stamp)
                writer.write_table(group.cast(writer.schema), row_group_size=max(1, group.num_rows))
            num_rows += group.num_rows
        assert writer is not None, "an empty file gives one empty batch"
        with writing(path):
            writer.add_key_value_metadata({TALLY_KEY: tally.to_text()})
            writer.close()
    except BaseException:
        if writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # what was written is thrown away
                writer.close()
        raise
    return num_rows, tally


def transformed(file: DataFile, transform: Transform, workers: Workers, *, groups: range | None = None) -> Results:
    """What `transform` makes of the rows of a file, or of some of its row groups; an empty file gives one empty table.

    One thread reads ahead, `workers` transform, the caller takes. What the folders of the file name is there to be
    worked on, and is not written: the output lies in folders of the same names. Raises DataError when the file is
    damaged, Stopped when the workers were told to stop.
    """

    def work(table: pa.Table) -> tuple[pa.Table, Tally]:
        result, tally = transform(file.with_partitions(table))
        named = [part.name for part in file.partitions if part.name not in table.column_names]
        return result.select([name for name in result.column_names if name not in named]), tally

    reader = ThreadPoolExecutor(1)
    waiting: deque[tuple[int, Future[tuple[pa.Table, Tally]]]] = deque()
    try:
        with file.open() as parquet:
            batches = _batches(file, parquet, groups)
            reading = reader.submit(next, batches, None)
            while (batch := reading.result()) is not None:
                reading = reader.submit(next, batches, None)
                group, table = batch
                if workers.stop.is_set():
                    raise Stopped
                waiting.append((group, workers.batches.submit(work, table)))
                if len(waiting) >= workers.threads + BATCHES_AHEAD:
                    group, future = waiting.popleft()
                    yield group, future.result()
            for group, future in waiting:
                yield group, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        reader.shutdown(cancel_futures=True)


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Turns what the system says about an output into a sentence."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{place} cannot be written ({error}); make room or give another place with -o, and run again: "
            "files that are finished are kept"
        ) from error


@contextlib.contextmanager
def appearing(output: Place) -> Iterator[Path]:
    """A local path to write to; when the block ends well, what is there appears whole as `output`.

    It lies beside a local output, so that it can be renamed. Raises OutputError when the output cannot be written.
    """
    if isinstance(output, Remote):
        with tempfile.TemporaryDirectory(prefix="parvae-") as folder:
            path = Path(folder) / output.name
            yield path
            with writing(output), pa.memory_map(str(path)) as content:
                output.replace_with(content.read_buffer())
        return
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        for leftover in output.parent.glob(f".{glob.escape(output.name)}.*.tmp"):
            leftover.unlink(missing_ok=True)  # of a process that was killed
    path = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        yield path
        with writing(output):
            with path.open("rb") as written:
                os.fsync(written.fileno())
            path.replace(output)
    finally:
        path.unlink(missing_ok=True)


def open_writer(path: Path, schema: pa.Schema, stamp: Mapping[str, str]) -> pq.ParquetWriter:
    """A writer of an output, with `stamp` in the metadata of its schema."""
    return pq.ParquetWriter(
        path,
        schema.with_metadata({**(schema.metadata or {}), **stamp}),
        use_dictionary=[name for name in schema.names if name not in UNIQUE_VALUES],
    )


def _batches(file: DataFile, parquet: pq.ParquetFile, groups: range | None) -> Iterator[tuple[int, pa.Table]]:
    """(row group, rows); one empty table for an empty file."""
    footer = parquet.metadata
    if not footer.num_rows:
        yield 0, without_structs(parquet.schema_arrow.empty_table())
        return
    for group in range(footer.num_row_groups) if groups is None else groups:
        facts = footer.row_group(group)
        row_bytes = max(1, facts.total_byte_size // max(1, facts.num_rows))
        size = max(256, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
        # The threads that transform are all that may work: Arrow's own would come on top.
        batches = parquet.iter_batches(batch_size=size, row_groups=[group], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file.path} cannot be read to its end ({error}); replace it") from error
            if batch is None:
                break
            yield group, without_structs(pa.Table.from_batches([batch]))
