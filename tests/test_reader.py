"""Readers in memory: the held-out split, batches in a seeded order, and rows as the network takes them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import people_table, read_rows, write_parquet

from parvae.files import find_files
from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, UNSEEN_CODE
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.reader import encode, select
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.units import plan_units

# The held-out split


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_held_out_share_is_the_one_asked_for(share: float) -> None:
    num_rows = 50_000
    held_out = Split.of(num_rows, share=share, max_rows=num_rows, seed=0).held_out()
    standard_error = np.sqrt(num_rows * share * (1.0 - share))
    assert abs(held_out.sum() - num_rows * share) < 4.0 * standard_error


def test_held_out_rows_are_bounded_in_number() -> None:
    held_out = Split.of(100_000, share=0.5, max_rows=1000, seed=0).held_out()
    assert abs(int(held_out.sum()) - 1000) < 4.0 * np.sqrt(1000)


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**31, 2**63])
def test_the_split_is_the_same_each_time(seed: int) -> None:
    first = Split.of(500, share=0.2, max_rows=500, seed=seed).held_out()
    assert np.array_equal(first, Split.of(500, share=0.2, max_rows=500, seed=seed).held_out())


def test_another_seed_holds_out_other_rows() -> None:
    first, second = (Split.of(5000, share=0.5, max_rows=5000, seed=seed).held_out() for seed in (0, 1))
    assert 0.4 < float((first == second).mean()) < 0.6


def test_more_rows_leave_the_earlier_ones_where_they_were() -> None:
    shorter = Split.of(1000, share=0.2, max_rows=10_000, seed=1).held_out()
    longer = Split.of(5000, share=0.2, max_rows=10_000, seed=1).held_out()
    assert np.array_equal(shorter, longer[:1000])


@pytest.mark.parametrize("share", [1e-9, 1.0 - 1e-9])
@pytest.mark.parametrize("num_rows", [2, 10])
def test_at_least_one_row_is_held_out_and_one_is_kept(num_rows: int, share: float) -> None:
    held_out = Split.of(num_rows, share=share, max_rows=num_rows, seed=0).held_out()
    assert 0 < held_out.sum() < num_rows


def test_held_out_rows_do_not_follow_the_order_of_the_file() -> None:
    held_out = Split.of(8000, share=0.25, max_rows=8000, seed=1).held_out()
    for start in range(0, 8000, 1000):
        assert held_out[start : start + 1000].mean() == pytest.approx(0.25, abs=0.06)


def test_the_split_does_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    table = people_table(200)
    one = [write_parquet(tmp_path / "one" / "all.parquet", table)]
    many = [
        write_parquet(tmp_path / "many" / f"{part}.parquet", table.slice(50 * part, 50), row_group_size=20)
        for part in range(4)
    ]
    schemas = [infer_schema(scan(plan_units(find_files(paths))), overrides={}, label=None) for paths in (one, many)]
    assert [column.role for column in schemas[0]] == [column.role for column in schemas[1]]
    first, second = (read_rows(paths, schemas[0]) for paths in (one, many))
    held_out = Split.of(200, share=0.2, max_rows=200, seed=0).held_out()
    for name in first:
        np.testing.assert_array_equal(select(first, held_out)[name], select(second, held_out)[name])


# Batches


def numbered_reader(num_rows: int = 50, *, batch_size: int = 8, seed: int = 0) -> MemoryReader:
    rows = np.arange(num_rows, dtype=np.float64)
    return MemoryReader({"numeric": rows[:, None], "boolean": rows[:, None] % 2}, batch_size=batch_size, seed=seed)


def rows_of(reader: MemoryReader, *, first_step: int, num_steps: int) -> list[list[float]]:
    return [batch["numeric"][:, 0].tolist() for batch in itertools.islice(reader.batches(first_step), num_steps)]


def test_an_epoch_visits_every_row_at_most_once_and_leaves_out_a_partial_batch() -> None:
    reader = numbered_reader()
    assert (reader.batch_size, reader.steps_per_epoch) == (8, 6)
    for epoch in range(4):
        visited = list(itertools.chain(*rows_of(reader, first_step=6 * epoch, num_steps=6)))
        assert len(visited) == 48
        assert len(set(visited)) == 48


def test_every_row_is_visited_within_a_few_epochs() -> None:
    visited = set(itertools.chain(*rows_of(numbered_reader(), first_step=0, num_steps=60)))
    assert visited == set(range(50))


def test_every_epoch_and_every_seed_has_another_order() -> None:
    reader = numbered_reader()
    epochs = [rows_of(reader, first_step=6 * epoch, num_steps=6) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows_of(numbered_reader(seed=1), first_step=0, num_steps=6) != epochs[0]


@pytest.mark.parametrize("first_step", [0, 1, 5, 6, 7, 20])
def test_starting_at_a_step_equals_skipping_those_before_it(first_step: int) -> None:
    reader = numbered_reader()
    assert (
        rows_of(reader, first_step=first_step, num_steps=9)
        == rows_of(reader, first_step=0, num_steps=first_step + 9)[first_step:]
    )


def test_the_columns_of_a_batch_stay_together() -> None:
    for batch in itertools.islice(numbered_reader().batches(0), 7):
        assert torch.equal(batch["boolean"], batch["numeric"] % 2)


def test_a_batch_is_no_larger_than_the_data() -> None:
    reader = numbered_reader(5, batch_size=100)
    assert (reader.batch_size, reader.steps_per_epoch) == (5, 1)
    assert sorted(rows_of(reader, first_step=0, num_steps=1)[0]) == [0.0, 1.0, 2.0, 3.0, 4.0]


# Rows as the network takes them


def test_categories_become_codes_with_null_and_unseen_apart() -> None:
    table = pa.table({"city": ["a", "a", "b"] * 10})
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    found = encode(schema, pa.table({"city": ["b", None, "zzz", "a"]}))["category"]
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [FIRST_LEVEL_CODE + 1, NULL_CODE, UNSEEN_CODE, FIRST_LEVEL_CODE]


def test_numeric_categories_have_the_same_code_as_whole_and_as_floating_numbers() -> None:
    table = pa.table({"grade": pa.array([1, 2, 2] * 10)})
    schema = infer_schema(statistics_of(table), overrides={"grade": "category"}, label=None)
    whole, floating = pa.table({"grade": [2, None]}), pa.table({"grade": pa.array([2.0, None])})
    assert encode(schema, whole)["category"].tolist() == encode(schema, floating)["category"].tolist() == [[2], [0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_the_statistics_count_as_null_is_coded_as_null(value: float) -> None:
    table = pa.table({"grade": pa.array([1.0, 2.0, value] * 10)})
    schema = infer_schema(statistics_of(table), overrides={"grade": "category"}, label=None)
    assert schema["grade"].num_nulls == 10
    codes = encode(schema, table)["category"][:, 0]
    assert int((codes == NULL_CODE).sum()) == 10


def test_the_same_rows_come_back_whatever_the_row_groups(tmp_path: Path) -> None:
    table = people_table(90)
    path = write_parquet(tmp_path / "a.parquet", table, row_group_size=7)
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    found, expected = read_rows([path], schema), encode(schema, table)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_statistics_of_files_are_those_of_the_table(tmp_path: Path) -> None:
    table = people_table(90)
    paths = [
        write_parquet(tmp_path / f"{part}.parquet", table.slice(30 * part, 30), row_group_size=13) for part in range(3)
    ]
    found, expected = scan(plan_units(find_files(paths))), statistics_of(table)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].num_rows == 90
        assert found[name].num_nulls == expected[name].num_nulls
        assert found[name].levels == expected[name].levels
        assert found[name].moments.mean == pytest.approx(expected[name].moments.mean)
