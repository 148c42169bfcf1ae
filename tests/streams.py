"""Streams over files whose rows are numbered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from builders import numbered_files

from parvae.files import find_files
from parvae_pipeline.decode import UnitRows
from parvae_pipeline.reader import Reader
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.stream_reader import StreamReader
from parvae_pipeline.units import plan_units

ROW_BYTES = 8 + 3 * 4
LAYOUTS = ([[30, 1, 17], [22], [5, 5, 40]], [[120]], [[1] * 60])
"""Row groups of several files: uneven ones, a single one, and single rows."""


def unit_rows(paths: list[str], *, share: float = 0.2, overrides: dict[str, str] | None = None) -> UnitRows:
    units = plan_units(find_files(paths))
    schema = infer_schema(scan(units), overrides=overrides or {}, label=None)
    return UnitRows(units, schema, Split.of(units.total_rows, share=share, max_rows=units.total_rows, seed=1))


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


def numbered(layout: int = 0) -> UnitRows:
    """The rows of a layout; hypothesis asks for the same ones many times."""
    return _numbered(layout)


@cache
def _numbered(layout: int) -> UnitRows:
    paths = numbered_files(Path(_folder().name) / str(layout), LAYOUTS[layout])
    return unit_rows(paths, overrides={"x": "numeric"})


def stream(
    rows: UnitRows, *, batch_size: int = 4, window_rows: int = 20, seed: int = 0, num_threads: int = 1, **ranks: int
) -> StreamReader:
    budget_bytes = 2 * window_rows * ROW_BYTES
    return StreamReader(
        rows, batch_size=batch_size, seed=seed, budget_bytes=budget_bytes, num_threads=num_threads, **ranks
    )


def steps_of(reader: Reader, *, first_step: int, num_steps: int) -> list[list[float]]:
    batches = reader.batches(first_step)
    found = [batch["numeric"][:, 0].tolist() for batch in itertools.islice(batches, num_steps)]
    close(batches)
    return found


def close(batches: Iterator[Any]) -> None:
    batches.close()  # type: ignore[attr-defined]


def epoch_of(reader: Reader, epoch: int) -> list[float]:
    steps = reader.steps_per_epoch
    return list(itertools.chain(*steps_of(reader, first_step=epoch * steps, num_steps=steps)))


def training_rows(rows: UnitRows) -> set[float]:
    return set(np.flatnonzero(~rows.split.held_out()).astype(float).tolist())
