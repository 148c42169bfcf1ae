"""Rows that outgrow memory: the same rows as in memory, an exact cursor, equal ranks, and a thread that ends."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import list_array, numbered_files, people_table, quick_settings, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from parvae.errors import DataError
from parvae.files import find_files
from parvae_pipeline.decode import UnitRows, read_split, row_bytes
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.reader import Reader
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.stream_reader import StreamReader
from parvae_pipeline.train import Plan, train
from parvae_pipeline.trainer import Report
from parvae_pipeline.training_data import default_memory_budget_mb, open_data
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


# The rows of an epoch


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("window_rows", [1, 20, 10_000])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_epoch_visits_every_training_row_but_a_partial_batch_and_none_held_out(
    layout: int, window_rows: int, num_threads: int
) -> None:
    rows = numbered(layout)
    reader = stream(rows, window_rows=window_rows, num_threads=num_threads)
    expected = training_rows(rows)
    assert (reader.batch_size, reader.steps_per_epoch) == (4, len(expected) // 4)
    for epoch in range(3):
        visited = epoch_of(reader, epoch)
        assert len(visited) == len(set(visited)) == 4 * (len(expected) // 4)
        assert set(visited) <= expected


def test_memory_and_stream_deliver_the_same_rows_when_no_batch_is_partial() -> None:
    rows = numbered()
    training, held_out = read_split(rows)
    num_training = len(training["numeric"])
    batch_size = next(size for size in (5, 3, 7, 2, 1) if num_training % size == 0)
    memory = MemoryReader(training, batch_size=batch_size, seed=0)
    streamed = stream(rows, batch_size=batch_size)
    assert memory.steps_per_epoch == streamed.steps_per_epoch
    for epoch in range(3):
        assert Counter(epoch_of(memory, epoch)) == Counter(epoch_of(streamed, epoch))
    assert set(held_out["numeric"][:, 0].tolist()) == set(range(120)) - training_rows(rows)


def test_every_row_is_visited_within_a_few_epochs() -> None:
    rows = numbered(1)
    reader = stream(rows, batch_size=60)
    visited = set(itertools.chain(*(epoch_of(reader, epoch) for epoch in range(30))))
    assert visited == training_rows(rows)


def test_every_epoch_and_every_seed_has_another_order() -> None:
    rows = numbered()
    epochs = [epoch_of(stream(rows), epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epoch_of(stream(rows, seed=1), 0) != epochs[0]


def test_the_columns_of_a_row_stay_together() -> None:
    for batch in itertools.islice(stream(numbered()).batches(0), 30):
        assert torch.equal(batch["vector.v"], batch["numeric"].float().expand(-1, 3))


def test_a_batch_outlives_the_window_it_came_from() -> None:
    reader = stream(numbered(), window_rows=4)
    batches = list(itertools.islice(reader.batches(0), 60))
    assert [batch["numeric"][:, 0].tolist() for batch in batches] == steps_of(reader, first_step=0, num_steps=60)


def test_the_order_does_not_depend_on_the_number_of_threads() -> None:
    one, three = (stream(numbered(), num_threads=num_threads) for num_threads in (1, 3))
    assert steps_of(one, first_step=3, num_steps=50) == steps_of(three, first_step=3, num_steps=50)


# The cursor


@given(
    layout=st.integers(0, len(LAYOUTS) - 1),
    batch_size=st.integers(1, 40),
    window_rows=st.integers(1, 100),
    first_step=st.integers(0, 150),
    ranks=st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 3)]),
)
@settings(max_examples=60, deadline=None)
def test_starting_at_a_step_equals_skipping_those_before_it(
    layout: int, batch_size: int, window_rows: int, first_step: int, ranks: tuple[int, int]
) -> None:
    rank, num_ranks = ranks if layout != 1 else (0, 1)
    reader = stream(numbered(layout), batch_size=batch_size, window_rows=window_rows, rank=rank, num_ranks=num_ranks)
    whole = steps_of(reader, first_step=0, num_steps=first_step + 12)
    assert steps_of(reader, first_step=first_step, num_steps=12) == whole[first_step:]


def test_a_late_start_decodes_nothing_that_lies_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = numbered(2)
    decoded: list[int] = []
    chunks = rows.chunks
    monkeypatch.setattr(rows, "chunks", lambda unit: decoded.append(unit) or chunks(unit))
    reader = stream(rows, batch_size=4, window_rows=4)
    steps_of(reader, first_step=reader.steps_per_epoch - 1, num_steps=1)
    # The last window of that epoch, and at most two that were read ahead: batch and partial batch each.
    assert len(decoded) <= 3 * 8


# Ranks


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("layout", [0, 2])
def test_ranks_take_equal_numbers_of_disjoint_rows(num_ranks: int, layout: int) -> None:
    rows = numbered(layout)
    readers = [stream(rows, batch_size=3, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    assert {(reader.batch_size, reader.steps_per_epoch) for reader in readers} == {
        (3, len(training_rows(rows)) // num_ranks // 3)
    }
    for epoch in range(3):
        visited = list(itertools.chain(*(epoch_of(reader, epoch) for reader in readers)))
        assert len(visited) == len(set(visited))
        assert set(visited) <= training_rows(rows)


def test_more_ranks_than_row_groups_are_refused() -> None:
    with pytest.raises(DataError, match=r"8 workers share 7 row groups.*more row groups, or use fewer workers"):
        stream(numbered(), rank=0, num_ranks=8)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_in_memory_ranks_share_out_the_batches_of_one_rank(num_ranks: int) -> None:
    arrays = {"numeric": np.arange(97, dtype=np.float64)[:, None]}
    one = MemoryReader(arrays, batch_size=4 * num_ranks, seed=3)
    ranks = [MemoryReader(arrays, batch_size=4, seed=3, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    num_steps = 3 * one.steps_per_epoch
    assert {rank.steps_per_epoch for rank in ranks} == {one.steps_per_epoch}
    shares = [steps_of(rank, first_step=0, num_steps=num_steps) for rank in ranks]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == steps_of(
        one, first_step=0, num_steps=num_steps
    )


def test_more_ranks_than_rows_in_memory_are_refused() -> None:
    with pytest.raises(DataError, match="2 training rows cannot feed 3 workers"):
        MemoryReader({"numeric": np.zeros((2, 1))}, batch_size=4, seed=0, rank=0, num_ranks=3)


# The thread


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "parvae-read-ahead"]


@pytest.mark.parametrize("num_steps", [1, 5, 100])
def test_the_thread_ends_when_the_batches_are_closed(num_steps: int) -> None:
    before = reading_threads()
    batches = stream(numbered(), num_threads=2).batches(0)
    for _ in range(num_steps):
        next(batches)
    assert len(reading_threads()) == len(before) + 1
    close(batches)
    assert reading_threads() == before


def test_a_loop_that_breaks_leaves_no_thread() -> None:
    before = reading_threads()
    for _ in stream(numbered()).batches(0):
        break
    assert reading_threads() == before


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_file_that_changes_while_it_is_streamed_is_named(tmp_path: Path, num_threads: int) -> None:
    paths = numbered_files(tmp_path, [[40], [40], [40]])
    reader = stream(unit_rows(paths, overrides={"x": "numeric"}), window_rows=8, num_threads=num_threads)
    before = reading_threads()
    batches = reader.batches(0)
    next(batches)
    os.utime(paths[1], ns=(1, 1))
    with pytest.raises(DataError, match=rf"{paths[1]} changed since the data set was planned"):
        list(itertools.islice(batches, 200))
    assert reading_threads() == before


def test_a_damaged_row_group_is_named_while_streaming(tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=400)})
    path = Path(write_parquet(tmp_path / "torn.parquet", table, row_group_size=200))
    rows = unit_rows([str(path)])
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content, modified_ns = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(content))
    os.utime(path, ns=(modified_ns, modified_ns))
    with pytest.raises(DataError, match=r"(?s)torn\.parquet: row group 1 cannot be read .*; replace the file"):
        list(itertools.islice(StreamReader(rows, batch_size=8, seed=0, budget_bytes=10**6).batches(0), 80))


def test_what_the_model_cannot_read_is_named_with_its_place(tmp_path: Path) -> None:
    good = pa.table({"v": list_array(np.ones((50, 2), np.float32))})
    rows = unit_rows([write_parquet(tmp_path / "a.parquet", good)])
    bad = pa.table({"v": pa.array([[1.0, 2.0]] * 49 + [None], pa.list_(pa.float32(), 2))})
    units = plan_units(find_files([write_parquet(tmp_path / "b.parquet", bad)]))
    with pytest.raises(DataError, match=r"b\.parquet, row group 0, rows from 0 on: column 'v' is null in 1 rows"):
        read_split(UnitRows(units, rows.schema, rows.split))


# Lists


@pytest.mark.parametrize("element", [pa.uint8(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("kind", ["fixed", "list", "large_list", "tensor"])
def test_lists_become_matrices_without_an_object_a_row(
    tmp_path: Path, element: pa.DataType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = np.random.default_rng(0).integers(0, 255, size=(60, 5))
    fixed = list_array(matrix.astype(element.to_pandas_dtype()))
    column = {
        "fixed": lambda: fixed,
        "list": lambda: fixed.cast(pa.list_(element)),
        "large_list": lambda: fixed.cast(pa.large_list(element)),
        "tensor": lambda: pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(element, [5]), fixed),
    }[kind]()
    rows = unit_rows([write_parquet(tmp_path / "a.parquet", pa.table({"v": column}), row_group_size=25)])
    training, held_out = read_split(rows)
    assert training["vector.v"].dtype == (np.uint8 if element == pa.uint8() else np.float32)
    mask = rows.split.held_out()
    np.testing.assert_array_equal(training["vector.v"], matrix[~mask])
    np.testing.assert_array_equal(held_out["vector.v"], matrix[mask])


# The budget


def data_of(rows: UnitRows, memory_budget_mb: float) -> Any:
    return open_data(
        rows.units, rows.schema, rows.split, batch_size=4, seed=0, memory_budget_mb=memory_budget_mb, num_first_rows=25
    )


def test_the_budget_decides_and_changes_no_row(tmp_path: Path) -> None:
    rows = unit_rows([write_parquet(tmp_path / "a.parquet", people_table(200), row_group_size=30)])
    size_mb = int((~rows.split.held_out()).sum()) * row_bytes(rows.schema) / 2**20
    memory, streamed = data_of(rows, size_mb), data_of(rows, 0.99 * size_mb)
    assert (memory.is_streamed, streamed.is_streamed) == (False, True)
    assert isinstance(memory.reader, MemoryReader)
    assert isinstance(streamed.reader, StreamReader)
    for name in memory.held_out:
        np.testing.assert_array_equal(memory.held_out[name], streamed.held_out[name])
        np.testing.assert_array_equal(memory.first_rows[name], streamed.first_rows[name])
        assert len(memory.first_rows[name]) == 25


def test_the_default_budget_is_a_part_of_the_memory_of_this_machine() -> None:
    assert 256 <= default_memory_budget_mb() <= max(256, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 22)


MEASURE = """
import itertools, resource, sys
from builders import quick_settings
from parvae.files import find_files
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.training_data import open_data
from parvae_pipeline.units import plan_units

units = plan_units(find_files(sys.argv[1:]))
schema = infer_schema(scan(units), overrides={}, label=None)
split = Split.of(units.total_rows, share=0.1, max_rows=1000, seed=0)
data = open_data(units, schema, split, batch_size=128, seed=0, memory_budget_mb=24, num_first_rows=1000)
assert data.is_streamed
for _ in itertools.islice(data.reader.batches(0), 2 * data.reader.steps_per_epoch):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    # 32 MB of rows in a file: a little more than the budget of 24 MB, so that one file is streamed as ten are.
    table = pa.table({"v": list_array(np.random.default_rng(0).normal(size=(32_768, 256)).astype(np.float32))})
    first = write_parquet(tmp_path / "0.parquet", table, row_group_size=4096)
    paths = [first]
    for number in range(1, 10):
        (tmp_path / f"{number}.parquet").hardlink_to(first)
        paths.append(str(tmp_path / f"{number}.parquet"))
    peaks = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    for given_paths in (paths[:1], paths):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *given_paths], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.15 * peaks[0], peaks


# Whole runs

TINY_MB = 0.002


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parquet(tmp_path_factory.mktemp("people") / "a.parquet", people_table(240), row_group_size=31)


def last_weights_of(folder: Path) -> dict[str, Any]:
    state = RunFolder(folder).load_state()
    assert state is not None
    return {**state["model"], **{f"averaged.{name}": value for name, value in state["averaged"].items()}}


def test_a_streamed_run_that_is_stopped_ends_as_one_that_is_not(people: str, tmp_path: Path) -> None:
    run = quick_settings(
        people, data={"memory_budget_mb": TINY_MB}, max_steps=60, batch_size=20, checkpoint_every_s=0.0
    )
    plans: list[Plan] = []
    train(run, tmp_path / "whole", announce=plans.append)

    def stop(report: Report) -> None:
        if report.progress.step >= 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "stopped", report=stop)
    train(run, tmp_path / "stopped", announce=plans.append)
    assert [plan.is_streamed for plan in plans] == [True, True]
    steps_per_epoch = plans[1].num_training_rows // 20
    assert plans[1].resumed_at_step % steps_per_epoch, "the run was stopped between epochs and proves nothing"
    found, expected = last_weights_of(tmp_path / "stopped"), last_weights_of(tmp_path / "whole")
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_resumed_run_keeps_the_budget_of_the_machine_where_it_began(
    people: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = quick_settings(people, max_steps=40, checkpoint_every_s=0.0)
    plans: list[Plan] = []
    monkeypatch.setattr("parvae_pipeline.train.default_memory_budget_mb", lambda: TINY_MB)
    train(run, tmp_path / "run", announce=plans.append)
    monkeypatch.setattr("parvae_pipeline.train.default_memory_budget_mb", lambda: 1000.0)
    train(run, tmp_path / "run", announce=plans.append)
    assert [plan.is_streamed for plan in plans] == [True, True]


def test_a_streamed_run_learns_as_one_in_memory_does(people: str, tmp_path: Path) -> None:
    results = [
        train(quick_settings(people, data={"memory_budget_mb": budget_mb}, max_steps=150), tmp_path / str(budget_mb))
        for budget_mb in (TINY_MB, 100.0)
    ]
    assert results[0].num_training_rows == results[1].num_training_rows
    assert results[0].negative_elbo_nats == pytest.approx(results[1].negative_elbo_nats, abs=1.0)
