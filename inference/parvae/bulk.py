"""Bulk work over Parquet files: one output file per input file, same rows, same order, bounded memory.

An output appears whole under its name or not at all, and carries in its metadata which model and which input made it: a
re-run does only what is missing. A file that cannot be read or scored goes to `_errors.jsonl`; the rest is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from parvae.arrow import in_the_form_of
from parvae.bundle import write_whole
from parvae.errors import DataError, Error, SettingError
from parvae.files import SUFFIXES, DataFile
from parvae.model import VAE

BATCH_ROWS = 16_384
ERRORS_NAME = "_errors.jsonl"
Transform = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One input file and where its output goes."""

    file: DataFile
    output: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task."""

    task: Task
    num_rows: int
    skipped: bool = False
    """The output was there already, made by this model from this input."""
    error: str | None = None


def plan(files: Sequence[DataFile], output: Path) -> list[Task]:
    """Where each output goes: `output` itself for one file and a name that ends in .parquet, else below that folder.

    Raises SettingError when two inputs would write one file, or an output would overwrite its input.
    """
    if output.suffix in SUFFIXES:
        if len(files) != 1:
            raise SettingError(f"{output} is one file, but there are {len(files)} inputs; give a folder with -o")
        tasks = [Task(file=files[0], output=output)]
    else:
        if output.is_file():
            raise SettingError(f"{output} is a file; give a folder, or a name that ends in .parquet")
        tasks = [Task(file=file, output=output / file.relative_path) for file in files]
    taken: dict[Path, DataFile] = {}
    for task in tasks:
        path = task.output.resolve()
        if path in taken:
            raise SettingError(
                f"{taken[path].path} and {task.file.path} would both write {task.output}; score them apart"
            )
        taken[path] = task.file
    for task in tasks:
        if any(Path(file.path) == task.output.resolve() for file in files):
            raise SettingError(f"{task.output} is one of the inputs; give another place with -o")
    return tasks


def run(tasks: Sequence[Task], transform: Transform, *, stamp: Mapping[str, str], output: Path) -> Iterator[Outcome]:
    """Work through the tasks one by one; files that fail are listed in the ledger."""
    outcomes = []
    for task in tasks:
        outcomes.append(attempt(task, transform, stamp=stamp))
        yield outcomes[-1]
    write_ledger(outcomes, output)


def attempt(task: Task, transform: Transform, *, stamp: Mapping[str, str]) -> Outcome:
    """Transform one file; a file that fails is an outcome, for the others must go on.

    Raises OSError when the output folder itself cannot be written: then every file would fail.
    """
    try:
        return process_file(task, transform, stamp=stamp)
    except (Error, pa.ArrowException, OSError) as error:
        folder = task.output.parent
        if isinstance(error, OSError) and folder.exists() and not os.access(folder, os.W_OK):
            raise
        return Outcome(task=task, num_rows=0, error=str(error))


def write_ledger(outcomes: Sequence[Outcome], output: Path) -> None:
    """List the files that failed in `_errors.jsonl`, in (or beside) `output`; remove the list when none did."""
    ledger = (output if output.suffix not in SUFFIXES else output.parent) / ERRORS_NAME
    failed = [{"path": outcome.task.file.path, "error": outcome.error} for outcome in outcomes if outcome.error]
    if failed:
        write_whole(ledger, "".join(json.dumps(entry) + "\n" for entry in failed).encode())
    else:
        ledger.unlink(missing_ok=True)


def process_file(task: Task, transform: Transform, *, stamp: Mapping[str, str]) -> Outcome:
    """Transform one file, batch by batch.

    Raises DataError when the file is damaged or changes while it is read, or its output was made by something else.
    """
    wanted = {**stamp, "parvae.input": _fingerprint(task.file)}
    if task.output.exists():
        found, num_rows = _stamp_of(task.output)
        if found == wanted:
            return Outcome(task=task, num_rows=num_rows, skipped=True)
    task.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = task.output.with_name(f".{task.output.name}.{os.getpid()}.tmp")
    try:
        num_rows = _write(task.file, temporary, transform, wanted)
        (now,) = task.file.filesystem.get_file_info([task.file.path])
        if (now.size, now.mtime_ns) != (task.file.num_bytes, task.file.modified_ns or now.mtime_ns):
            raise DataError(f"{task.file.path} changed while it was read; run again when it is complete")
        temporary.replace(task.output)
    finally:
        temporary.unlink(missing_ok=True)
    return Outcome(task=task, num_rows=num_rows)


def _write(file: DataFile, path: Path, transform: Transform, stamp: Mapping[str, str]) -> int:
    writer: pq.ParquetWriter | None = None
    num_rows = 0
    try:
        with file.open() as parquet:
            for table in _batches(file, parquet):
                result = transform(table)
                if writer is None:
                    writer = pq.ParquetWriter(
                        path, result.schema.with_metadata({**(result.schema.metadata or {}), **stamp})
                    )
                writer.write_table(result.cast(writer.schema) if result.schema != writer.schema else result)
                num_rows += result.num_rows
    finally:
        if writer is not None:
            writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return num_rows


def _batches(file: DataFile, parquet: pq.ParquetFile) -> Iterator[pa.Table]:
    """Tables of at most BATCH_ROWS rows; one empty table for an empty file."""
    if not parquet.metadata.num_rows:
        yield parquet.schema_arrow.empty_table()
        return
    batches = parquet.iter_batches(batch_size=BATCH_ROWS)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.path} cannot be read to its end ({error}); replace it") from error
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def score_transform(vae: VAE, *, alpha: float | None) -> Transform:
    """Columns the model does not cover, then score, p_value and (unless `alpha` is None) is_anomaly."""

    def transform(table: pa.Table) -> pa.Table:
        scores = vae.score(table)
        columns = {"score": pa.array(scores.nats), "p_value": pa.array(scores.p_value)}
        if alpha is not None:
            columns["is_anomaly"] = pa.array(scores.is_anomaly(alpha))
        return _beside(vae, table, columns)

    return transform


def encode_transform(vae: VAE) -> Transform:
    """Columns the model does not cover, then `code`: a fixed-size list of float32."""

    def transform(table: pa.Table) -> pa.Table:
        codes = np.ascontiguousarray(vae.encode(table))
        return _beside(
            vae, table, {"code": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), vae.latent_size)}
        )

    return transform


def reconstruct_transform(vae: VAE) -> Transform:
    """The rows, every modelled column replaced by what the model expects."""
    return lambda table: in_the_form_of(table, vae.schema, vae.decode(vae.encode(table)))


def _beside(vae: VAE, table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    modelled = {column.name for column in vae.schema.modelled}
    kept = table.select([name for name in table.column_names if name not in modelled])
    for name, values in columns.items():
        if name in kept.column_names:
            raise DataError(f"the rows have a column {name!r} already, which the output needs; rename it")
        kept = kept.append_column(name, values)
    return kept


def _fingerprint(file: DataFile) -> str:
    return json.dumps({"path": file.path, "num_bytes": file.num_bytes, "modified_ns": file.modified_ns})


def _stamp_of(path: Path) -> tuple[dict[str, str], int]:
    """What an existing output says of itself; nothing when it is no Parquet file."""
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return {}, 0
    metadata: dict[bytes, Any] = footer.metadata or {}
    return {
        key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"parvae.")
    }, footer.num_rows
