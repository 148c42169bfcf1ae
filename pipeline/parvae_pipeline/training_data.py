"""The rows of a run: the held-out ones in memory, the others there too where they fit, else streamed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from parvae.rows import Arrays
from parvae.schema import Schema
from parvae_pipeline.decode import UnitRows, read_split, row_bytes
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.reader import Reader
from parvae_pipeline.split import Split
from parvae_pipeline.stream_reader import StreamReader
from parvae_pipeline.units import Units

MEMORY_SHARE = 4
"""The budget is one part in so many of the machine's memory: the model, Arrow and other programs take theirs."""
MIN_BUDGET_MB = 256
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may use (cgroup version 2, version 1)."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run reads."""

    reader: Reader
    first_rows: Arrays
    """The first training rows in the order of the data set: the same ones whichever reader is used."""
    held_out: Arrays
    is_streamed: bool


def open_data(
    units: Units,
    schema: Schema,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    memory_budget_mb: float,
    num_first_rows: int,
    rank: int = 0,
    num_ranks: int = 1,
) -> TrainingData:
    """Decode once what fits the budget, stream what does not.

    Raises DataError naming the file that is damaged, changed since the plan, or holds what the model cannot read.
    """
    rows = UnitRows(units, schema, split)
    num_training_rows = units.total_rows - int(split.count_held_out(units.bounds).sum())
    budget_bytes = int(memory_budget_mb * 2**20)
    if num_training_rows * row_bytes(schema) <= budget_bytes:
        training, held_out = read_split(rows)
        return TrainingData(
            reader=MemoryReader(training, batch_size=batch_size, seed=seed, rank=rank, num_ranks=num_ranks),
            first_rows={name: array[:num_first_rows] for name, array in training.items()},
            held_out=held_out,
            is_streamed=False,
        )
    reader = StreamReader(  # before anything is read: it refuses more ranks than units
        rows,
        batch_size=batch_size,
        seed=seed,
        budget_bytes=budget_bytes,
        num_threads=pa.cpu_count(),
        rank=rank,
        num_ranks=num_ranks,
    )
    first_rows, held_out = read_split(rows, max_training_rows=num_first_rows)
    return TrainingData(reader=reader, first_rows=first_rows, held_out=held_out, is_streamed=True)


def default_memory_budget_mb() -> float:
    """A quarter of the memory that this machine or container has, in MiB; at least 256."""
    limits = []
    if hasattr(os, "sysconf"):  # Windows has none
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in map(Path, CGROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        if text.isdigit():
            limits.append(int(text))
    return float(max(MIN_BUDGET_MB, min(limits, default=0) // MEMORY_SHARE // 2**20))
