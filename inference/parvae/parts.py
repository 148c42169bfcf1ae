"""One large file worked on in several places: parts of its row groups, hidden files beside the output until they join.

The output is the one that a single pass writes, to the last byte. A part that an earlier run finished stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from parvae.bulk import Outcome, Task, attempted, stamp_of, write_output
from parvae.errors import DataError
from parvae.storage import Place, Remote
from parvae.stream import Results, Transform, Workers, appearing, transformed
from parvae.tally import Tally

PART_NAME = re.compile(r"\.{1,2}(.+)\.\d+-\d+\.part(?:\.\d+\.tmp)?")
"""Of parts, and of what a process that was killed leaves of one; the first group is the name of the output."""
PART_KEY, GROUP_KEY, TALLY_KEY = b"parvae.part", b"parvae.group", b"parvae.tally"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring row groups of the input of a task."""

    task: Task
    first_group: int
    last_group: int
    """The first one that is no longer in the part."""
    num_rows: int

    @property
    def place(self) -> Place:
        """Where the rows of the output wait for those of the other parts: batches of Arrow's stream format."""
        name = f".{self.task.output.name}.{self.first_group:06}-{self.last_group:06}.part"
        return self.task.output.with_name(name)


def parts_of(task: Task, *, part_bytes: int) -> list[Part]:
    """Parts of about `part_bytes` of the file each, cut between row groups; none where it is no larger, or damaged."""
    if task.file.num_bytes <= part_bytes:
        return []
    try:
        with task.file.open() as parquet:
            groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
            sizes = [(group.total_byte_size, group.num_rows) for group in groups]
            num_bytes, num_rows = np.array(sizes, np.int64).reshape(-1, 2).T
    except DataError:
        return []  # whoever reads it whole says what is wrong with it
    if not num_rows.sum():
        return []
    # Row groups tell their size before compression alone.
    part_size = num_bytes.sum() / (task.file.num_bytes / part_bytes)
    part_of_group = (np.cumsum(num_bytes) - num_bytes) // part_size
    edges = [0, *(np.flatnonzero(np.diff(part_of_group)) + 1).tolist(), len(groups)]
    if len(edges) == 2:
        return []
    return [
        Part(task=task, first_group=first, last_group=last, num_rows=int(num_rows[first:last].sum()))
        for first, last in pairwise(edges)
        if num_rows[first:last].any()
    ]


def attempt_part(part: Part, transform: Transform, *, stamp: Mapping[str, str]) -> Outcome:
    """Transform the rows of a part; one that fails is an outcome.

    Raises OutputError when the part cannot be written.
    """
    return attempted(part.task, lambda: _process(part, transform, stamp=stamp))


def join(
    task: Task, parts: Sequence[Part], *, stamp: Mapping[str, str], discovery_rate: float | None = None
) -> Outcome:
    """Write the output of a task from its parts, and remove them.

    Raises OutputError when it cannot be written.
    """
    outcome = attempted(
        task, lambda: write_output(task, _results_of(parts), stamp=stamp, discovery_rate=discovery_rate)
    )
    for part in parts:
        part.place.unlink(missing_ok=True)
    return outcome


def remove_parts(tasks: Sequence[Task]) -> None:
    """Remove what earlier runs that were killed left of these tasks."""
    names: dict[Place, set[str]] = {}
    for task in tasks:
        names.setdefault(task.output.parent, set()).add(task.output.name)
    for folder, outputs in names.items():
        filesystem, path = (
            (folder.filesystem, folder.path)
            if isinstance(folder, Remote)
            else (pafs.LocalFileSystem(), str(folder.absolute()))
        )
        for found in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            match = PART_NAME.fullmatch(found.base_name)
            if match is not None and match[1] in outputs:
                (folder / found.base_name).unlink(missing_ok=True)


def _process(part: Part, transform: Transform, *, stamp: Mapping[str, str]) -> Outcome:
    done = Outcome(task=part.task, num_rows=part.num_rows, tally=Tally.empty())
    wanted = _stamp_of(part, stamp)
    if part.place.is_file():
        with contextlib.suppress(pa.ArrowException), _opened(part) as reader:
            if (reader.schema.metadata or {}).get(PART_KEY) == wanted:
                return done
    file = part.task.file
    file.require_unchanged()
    groups = range(part.first_group, part.last_group)
    with Workers(1) as workers, appearing(part.place) as path:
        with contextlib.closing(transformed(file, transform, workers, groups=groups)) as results:
            _write(results, str(path), wanted)
        file.require_unchanged()
    return done


def _write(results: Results, path: str, stamp: bytes) -> None:
    writer: pa.ipc.RecordBatchStreamWriter | None = None
    with contextlib.ExitStack() as stack:
        for group, (table, tally) in results:
            if writer is None:
                schema = table.schema.with_metadata({**(table.schema.metadata or {}), PART_KEY: stamp})
                writer = stack.enter_context(pa.ipc.new_stream(path, schema))
            for batch in table.to_batches():
                writer.write_batch(batch, custom_metadata={GROUP_KEY: str(group), TALLY_KEY: tally.to_text()})


def _results_of(parts: Sequence[Part]) -> Results:
    """What `transformed` gives for the whole file, from its parts."""
    for part in parts:
        num_rows = 0
        with _opened(part) as reader:
            metadata = {key: value for key, value in reader.schema.metadata.items() if key != PART_KEY}
            for batch, facts in reader.iter_batches_with_custom_metadata():
                num_rows += batch.num_rows
                table = pa.Table.from_batches([batch]).replace_schema_metadata(metadata or None)
                yield int(facts[GROUP_KEY]), (table, Tally.from_text(facts[TALLY_KEY].decode()))
        if num_rows != part.num_rows:  # the stream format does not tell a stream that was cut off
            raise DataError(f"{part.place} holds {num_rows:,} of {part.num_rows:,} rows; run again")


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[pa.ipc.RecordBatchStreamReader]:
    place = part.place
    with contextlib.ExitStack() as stack:
        source = (
            place.filesystem.open_input_file(place.path) if isinstance(place, Remote) else pa.memory_map(str(place))
        )
        yield stack.enter_context(pa.ipc.open_stream(stack.enter_context(source)))


def _stamp_of(part: Part, stamp: Mapping[str, str]) -> bytes:
    groups = {"parvae.groups": f"{part.first_group}-{part.last_group}"}
    return json.dumps({**stamp_of(part.task.file, stamp), **groups}).encode()
