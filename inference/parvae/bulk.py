"""Bulk work over Parquet files: one output file per input file, same rows, same order, bounded memory.

An output appears whole under its name or not at all, and carries in its metadata which model and which input made it: a
re-run does only what is missing. A file that cannot be read or scored goes to `_errors.jsonl`; the rest is finished.
Nothing in an output depends on the time or the process that made it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from parvae.arrow import ArrowColumns, in_the_form_of
from parvae.codes import CodeGrid
from parvae.discovery import mark_discoveries
from parvae.errors import DataError, Error, OutputError, SettingError
from parvae.explanation import EXPLANATION, explanations
from parvae.files import SUFFIXES, DataFile
from parvae.model import VAE
from parvae.rows import read_inputs
from parvae.storage import Place, Remote, write_whole
from parvae.stream import TALLY_KEY, Results, Transform, Workers, appearing, transformed, write, writing
from parvae.tally import Tally, tally

ERRORS_NAME = "_errors.jsonl"
GRID_KEY = "parvae.grid"
"""Metadata of a column of codes on a grid."""
FOOTERS_AT_A_TIME = 16
"""Outputs of earlier runs whose footers are read at the same time; in a bucket each takes a round trip."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One input file and where its output goes."""

    file: DataFile
    output: Place


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task."""

    task: Task
    num_rows: int
    tally: Tally
    skipped: bool = False
    """The output was there already, made by this model from this input."""
    error: str | None = None


def plan(files: Sequence[DataFile], output: Place) -> list[Task]:
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
    taken: dict[str, DataFile] = {}
    for task in tasks:
        path = _address(task.output)
        if path in taken:
            raise SettingError(
                f"{taken[path].path} and {task.file.path} would both write {task.output}; score them apart"
            )
        taken[path] = task.file
    inputs = {file.path for file in files if isinstance(file.filesystem, pafs.LocalFileSystem) == _is_local(output)}
    for task in tasks:
        if _address(task.output) in inputs:
            raise SettingError(f"{task.output} is one of the inputs; give another place with -o")
    return tasks


def run(
    tasks: Sequence[Task],
    transform: Transform,
    *,
    stamp: Mapping[str, str],
    output: Place,
    threads: int = 1,
    discovery_rate: float | None = None,
) -> Iterator[Outcome]:
    """Work through the tasks in order, two of them under way; files that fail are listed in the ledger.

    With a `discovery_rate` the rows of each file are flagged once all their p-values are known.

    Raises SettingError when an output of something else is in the way, OutputError when none can be written.
    """
    outcomes, missing = sift(tasks, stamp=stamp)
    yield from outcomes
    with Workers(threads) as workers:
        attempts = partial(attempt, transform=transform, stamp=stamp, workers=workers, discovery_rate=discovery_rate)
        for outcome in workers.files.map(attempts, missing):
            outcomes.append(outcome)
            yield outcome
    write_ledger(outcomes, output)


def sift(tasks: Sequence[Task], *, stamp: Mapping[str, str]) -> tuple[list[Outcome], list[Task]]:
    """Outcomes of the tasks that an earlier run has finished, and the tasks that remain.

    Raises SettingError when the place of an output holds what another model or verb made, or no output at all.
    """
    with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as readers:
        found = list(readers.map(_footer_of, [task.output for task in tasks]))
    finished, missing = [], []
    for task, footer in zip(tasks, found, strict=True):
        if footer is None:
            missing.append(task)
            continue
        metadata = {
            key.decode(): value.decode() for key, value in footer.metadata.items() if key.startswith(b"parvae.")
        }
        counted = metadata.pop(TALLY_KEY, None)
        _refuse_results_of_another(task, metadata, stamp)
        if metadata == stamp_of(task.file, stamp) and counted is not None:
            counts = Tally.from_text(counted)
            finished.append(Outcome(task=task, num_rows=footer.num_rows, tally=counts, skipped=True))
        else:
            missing.append(task)
    return finished, missing


def attempt(
    task: Task,
    transform: Transform,
    *,
    stamp: Mapping[str, str],
    workers: Workers | None = None,
    discovery_rate: float | None = None,
) -> Outcome:
    """Transform one file, batch by batch, by `workers` (default: one of its own).

    A file that is damaged, or changes after it was found, is an outcome, for the others must go on.

    Raises OutputError when the output cannot be written: then every file would fail.
    """

    def process() -> Outcome:
        task.file.require_unchanged()
        with Workers(1) if workers is None else contextlib.nullcontext(workers) as working:
            results = transformed(task.file, transform, working)
            return write_output(task, results, stamp=stamp, discovery_rate=discovery_rate)

    return attempted(task, process)


def attempted(task: Task, action: Callable[[], Outcome]) -> Outcome:
    """The outcome of `action`; one that says what failed, if the input was at fault.

    Raises OutputError when the output cannot be written.
    """
    try:
        return action()
    except OutputError:
        raise
    except (Error, pa.ArrowException, OSError) as error:
        return Outcome(task=task, num_rows=0, tally=Tally.empty(), error=str(error))


def write_output(
    task: Task, results: Results, *, stamp: Mapping[str, str], discovery_rate: float | None = None
) -> Outcome:
    """Write the output of a task whole.

    Raises DataError when the input is damaged or has changed, OutputError when the output cannot be written.
    """
    with contextlib.closing(results), appearing(task.output) as path:
        num_rows, counts = write(results, path, stamp=stamp_of(task.file, stamp))
        if discovery_rate is not None:
            counts = mark_discoveries(path, counts, discovery_rate)
        task.file.require_unchanged()
    return Outcome(task=task, num_rows=num_rows, tally=counts)


def write_ledger(outcomes: Sequence[Outcome], output: Place) -> None:
    """List the files that failed in `_errors.jsonl`, in (or beside) `output`; remove the list when none did."""
    ledger = (output if output.suffix not in SUFFIXES else output.parent) / ERRORS_NAME
    failed = [{"path": outcome.task.file.path, "error": outcome.error} for outcome in outcomes if outcome.error]
    with writing(ledger):
        if failed:
            write_whole(ledger, "".join(json.dumps(entry) + "\n" for entry in failed).encode())
        else:
            ledger.unlink(missing_ok=True)


def stamp_of(file: DataFile, stamp: Mapping[str, str]) -> dict[str, str]:
    """`stamp` with the fingerprint of an input: what stands in the metadata of its output."""
    fingerprint = {"path": file.path, "num_bytes": file.num_bytes, "modified_ns": file.modified_ns}
    return {**stamp, "parvae.input": json.dumps(fingerprint)}


def score_transform(vae: VAE, *, alpha: float | None, num_explained: int = 0) -> Transform:
    """Columns the model does not cover, then score, p_value, (unless `alpha` is None) is_anomaly, and an explanation.

    `num_explained` columns are explained in every row, at about the cost of scoring it once more.
    """

    def transform(table: pa.Table) -> tuple[pa.Table, Tally]:
        inputs, num_rows = read_inputs(vae.schema, table)
        scores = vae._score_inputs(inputs, num_rows, table)
        columns = {"score": pa.array(scores.score), "p_value": pa.array(scores.p_value)}
        num_flagged = 0
        if alpha is not None:
            flagged = scores.is_anomaly(alpha)
            num_flagged = int(flagged.sum())
            columns["is_anomaly"] = pa.array(flagged)
        if num_explained:
            columns[EXPLANATION] = explanations(vae.schema, table, scores, num_explained)
        counts = tally(vae.schema, ArrowColumns(table), inputs, scores.contributions, num_flagged)
        return _beside(vae, table, columns), counts

    return transform


def encode_transform(vae: VAE, grid: CodeGrid | None = None) -> Transform:
    """Columns the model does not cover, then `code`: a fixed-size list of float32, or of int8 on a grid."""

    def transform(table: pa.Table) -> tuple[pa.Table, Tally]:
        means = vae.encode(table)
        codes = pa.array(np.ascontiguousarray(means if grid is None else grid.quantised(means)).reshape(-1))
        output = _beside(vae, table, {"code": pa.FixedSizeListArray.from_arrays(codes, vae.latent_size)})
        if grid is not None:
            field = output.schema.field("code").with_metadata({GRID_KEY: json.dumps(grid.to_json())})
            output = output.cast(output.schema.set(output.schema.names.index("code"), field))
        return output, Tally(num_rows=table.num_rows)

    return transform


def reconstruct_transform(vae: VAE) -> Transform:
    """The rows, every modelled column replaced by what the model expects."""

    def transform(table: pa.Table) -> tuple[pa.Table, Tally]:
        expected = vae.decode(vae.encode(table))
        return in_the_form_of(table, vae.schema, expected), Tally(num_rows=table.num_rows)

    return transform


def _beside(vae: VAE, table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    modelled = {column.name for column in vae.schema.modelled}
    kept = table.select([name for name in table.column_names if name not in modelled])
    for name, values in columns.items():
        if name in kept.column_names:
            raise DataError(f"the rows have a column {name!r} already, which the output needs; rename it")
        kept = kept.append_column(name, values)
    return kept


def _footer_of(output: Place) -> pq.FileMetaData | None:
    """The footer of an output that is there; None where there is none."""
    if not output.exists():
        return None
    try:
        if isinstance(output, Remote):
            return pq.read_metadata(output.path, filesystem=output.filesystem)
        return pq.read_metadata(output)
    except (pa.ArrowException, OSError) as error:
        raise SettingError(
            f"{output} is in the way and no output of vae ({error}); move it, or give another -o"
        ) from error


def _refuse_results_of_another(task: Task, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    if "parvae.model_id" not in found:
        raise SettingError(f"{task.output} is in the way and no output of vae; move it, or give another place with -o")
    for key, what in (("parvae.model_id", "model"), ("parvae.verb", "verb")):
        if found.get(key) != wanted[key]:
            raise SettingError(
                f"{task.output} holds results of {what} {found.get(key, '')[:12]!r}, not of {wanted[key][:12]!r}; "
                "remove them, or give another place with -o"
            )


def _is_local(place: Place) -> bool:
    return isinstance(place, Path)


def _address(place: Place) -> str:
    return place.path if isinstance(place, Remote) else str(place.resolve())
