"""The plan of a data set: units from the footers, the split by row number, and the files that are refused."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import list_array, numbered_files, people_table, write_parquet
from hypothesis import given
from hypothesis import strategies as st

from parvae.errors import DataError
from parvae.files import find_files
from parvae_pipeline import split as split_module
from parvae_pipeline.decode import UnitTables
from parvae_pipeline.parallel import map_in_order
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.units import plan_units

# The plan


def test_units_are_the_row_groups_in_the_order_of_the_files(tmp_path: Path) -> None:
    units = plan_units(find_files(numbered_files(tmp_path, [[3, 2], [4], [1, 1, 1]])))
    assert units.file_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert units.row_group.tolist() == [0, 1, 0, 0, 1, 2]
    assert units.num_rows.tolist() == [3, 2, 4, 1, 1, 1]
    assert units.first_row.tolist() == [0, 3, 5, 9, 10, 11]
    assert units.bounds.tolist() == [0, 3, 5, 9, 10, 11, 12]
    assert units.total_rows == 12
    tables = UnitTables(units, columns=["x"])
    for unit in range(len(units)):
        rows = [value for _, table in tables.chunks(unit) for value in table.column("x").to_pylist()]
        assert rows == list(range(units.first_row[unit], units.first_row[unit] + units.num_rows[unit]))


def test_a_file_without_rows_is_no_unit(tmp_path: Path) -> None:
    units = plan_units(find_files(numbered_files(tmp_path, [[], [3], [0], [2]])))
    assert units.file_index.tolist() == [1, 3]
    assert units.first_row.tolist() == [0, 3]


def test_bytes_are_those_of_the_columns_that_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", people_table(100), row_group_size=40)
    files, metadata = find_files([path]), pq.ParquetFile(path).metadata
    for group, (every, embedding) in enumerate(
        zip(plan_units(files).num_bytes, plan_units(files, ["embedding"]).num_bytes, strict=True)
    ):
        columns = [metadata.row_group(group).column(leaf) for leaf in range(metadata.num_columns)]
        assert every == metadata.row_group(group).total_byte_size
        assert embedding == sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema.startswith("embedding")
        )


def test_a_plan_takes_a_few_bytes_a_unit(tmp_path: Path) -> None:
    units = plan_units(find_files(numbered_files(tmp_path, [[1] * 500, [1] * 500])))
    arrays = [value for value in vars(units).values() if isinstance(value, np.ndarray)]
    assert len(units) == 1000
    assert all(array.base is None for array in arrays), "a view keeps a larger array alive"
    assert sum(array.nbytes for array in arrays) <= 40 * len(units)


def test_a_column_that_is_null_in_the_first_file_has_the_type_of_the_second(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "0.parquet", pa.table({"x": pa.nulls(3)}))
    second = write_parquet(tmp_path / "1.parquet", pa.table({"x": [1.0]}))
    third = write_parquet(tmp_path / "2.parquet", pa.table({"x": ["a"]}))
    assert plan_units(find_files([first, second])).schema.field("x").type == pa.float64()
    with pytest.raises(DataError, match=r"2\.parquet: column 'x' is string, but double in the files before it"):
        plan_units(find_files([first, second, third]))


def test_a_damaged_footer_is_named_among_good_files(tmp_path: Path) -> None:
    paths = numbered_files(tmp_path, [[3]] * 20)
    Path(paths[13]).write_bytes(Path(paths[13]).read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{paths[13]} cannot be read as Parquet .*; replace it or leave it out"):
        plan_units(find_files(paths))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs the users of POSIX")
def test_a_file_that_may_not_be_read_is_named_among_good_files() -> None:
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to other users
        paths = numbered_files(Path(folder), [[3], [4], [5]])
        Path(folder).chmod(0o755)
        Path(paths[1]).chmod(0)
        try:
            if me == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.raises(DataError, match=rf"{paths[1]} cannot be read as Parquet .*Permission denied"):
                plan_units(find_files(paths))
        finally:
            os.seteuid(me)


# Files that change


def grown(path: Path) -> None:
    write_parquet(path, pa.table({"x": np.arange(50, dtype=np.float64)}))


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grown, "changed since the data set was planned .*leave the files alone"),
        (touched, "changed since the data set was planned .*leave the files alone"),
        (Path.unlink, "is gone since the data set was planned"),
    ],
)
def test_a_file_that_changes_after_the_plan_is_named(tmp_path: Path, change: object, message: str) -> None:
    paths = numbered_files(tmp_path, [[3], [4]])
    units = plan_units(find_files(paths))
    assert callable(change)
    change(Path(paths[1]))
    with pytest.raises(DataError, match=rf"(?s){paths[1]} {message}"):
        scan(units)


# The statistics pass


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_statistics_do_not_depend_on_the_number_of_threads(tmp_path: Path, num_threads: int) -> None:
    units = plan_units(find_files([write_parquet(tmp_path / "a.parquet", people_table(300), row_group_size=7)]))
    before = pa.cpu_count()
    try:
        pa.set_cpu_count(1)
        expected = scan(units)
        pa.set_cpu_count(num_threads)
        assert scan(units) == expected
    finally:
        pa.set_cpu_count(before)


def test_wide_rows_are_read_in_small_chunks(tmp_path: Path) -> None:
    table = pa.table({"wide": list_array(np.zeros((3000, 1024), np.float32))})
    units = plan_units(find_files([write_parquet(tmp_path / "a.parquet", table)]))
    sizes = [chunk.num_rows for _, chunk in UnitTables(units, columns=None).chunks(0)]
    assert sum(sizes) == 3000
    assert max(sizes) == 1024


# The split


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    chunk_rows=st.integers(1, 50),
    share=st.floats(1e-6, 0.999),
    seed=st.integers(0, 2**64 - 1),
)
def test_counts_and_parts_agree_with_the_whole_split(
    sizes: list[int], chunk_rows: int, share: float, seed: int
) -> None:
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    num_rows = int(bounds[-1])
    whole = Split.of(num_rows, share=share, max_rows=num_rows, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "CHUNK_ROWS", chunk_rows)
        assert Split.of(num_rows, share=share, max_rows=num_rows, seed=seed) == whole
        counts = whole.count_held_out(bounds)
    parts = [whole.held_out(int(first), size) for first, size in zip(bounds, sizes, strict=False)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.held_out())
    assert counts.tolist() == [int(part.sum()) for part in parts]
    assert num_rows == 1 or 0 < counts.sum() < num_rows


# Work in threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_results_come_in_order_and_not_far_ahead(num_threads: int) -> None:
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    num_alive = threading.active_count()
    results = map_in_order(square, range(100), num_threads=num_threads)
    assert [next(results) for _ in range(10)] == [number * number for number in range(10)]
    assert len(begun) <= 10 + num_threads + 1
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == num_alive


def test_the_first_error_in_order_is_raised() -> None:
    def fail(number: int) -> int:
        if number % 3 == 2:
            raise ValueError(number)
        return number

    results = map_in_order(fail, range(20), num_threads=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
