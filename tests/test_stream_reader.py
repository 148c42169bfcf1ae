"""Rows that outgrow memory: the same rows as in memory, an exact cursor, equal ranks, and a thread that ends."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import list_array, numbered_files, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    LAYOUTS,
    close,
    epoch_of,
    numbered,
    steps_of,
    stream,
    training_rows,
    unit_rows,
)

from parvae.errors import DataError
from parvae.files import find_files
from parvae_pipeline.decode import UnitRows, read_split
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.stream_reader import StreamReader
from parvae_pipeline.units import plan_units

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
