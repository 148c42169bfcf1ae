"""From Parquet to batches: the split, the cursor, the files that are found, and the damage that is named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import list_array, people_table, read_rows, write_parquet

from parvae.errors import DataError
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


# Files that disagree


def files_of(tmp_path: Path, *tables: pa.Table) -> list[str]:
    return [write_parquet(tmp_path / f"{part}.parquet", table) for part, table in enumerate(tables)]


def test_a_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    paths = files_of(tmp_path, pa.table({"x": [1.0], "y": [1.0]}), pa.table({"x": [1.0]}))
    with pytest.raises(DataError, match=r"1\.parquet lacks column 'y'; give all files the same columns"):
        scan(plan_units(find_files(paths)))


def test_a_file_with_one_more_column_is_named(tmp_path: Path) -> None:
    paths = files_of(tmp_path, pa.table({"x": [1.0]}), pa.table({"x": [1.0], "y": [1.0]}))
    with pytest.raises(DataError, match=r"1\.parquet has one that the files before it lack: 'y'"):
        scan(plan_units(find_files(paths)))


def test_a_file_with_another_type_is_named(tmp_path: Path) -> None:
    paths = files_of(tmp_path, pa.table({"x": [1.0]}), pa.table({"x": ["1.0"]}))
    with pytest.raises(DataError, match=r"1\.parquet: column 'x' is string, but double.*cast it to one type"):
        scan(plan_units(find_files(paths)))


def test_columns_may_come_in_another_order(tmp_path: Path) -> None:
    paths = files_of(tmp_path, pa.table({"x": [1.0], "y": ["a"]}), pa.table({"y": ["b"], "x": [2.0]}))
    found = scan(plan_units(find_files(paths)))
    assert found["x"].moments.mean == 1.5
    assert found["y"].num_rows == 2


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.table([[1.0], [2.0]], names=["x", "x"]), path)
    with pytest.raises(DataError, match=r"twice\.parquet has column 'x' more than once; rename or drop"):
        scan(plan_units(find_files([str(path)])))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("has_row_group", [True, False])
def test_a_file_without_rows_changes_nothing(tmp_path: Path, order: tuple[int, int], has_row_group: bool) -> None:
    assert_empty_file_changes_nothing(tmp_path, people_table(40), order, has_row_group)


def test_a_file_without_rows_changes_nothing_for_lists_whose_type_has_no_length(tmp_path: Path) -> None:
    rows = pa.table({"lists": [[1.0, float(number)] for number in range(40)]})
    assert_empty_file_changes_nothing(tmp_path, rows, (0, 1), False)


def assert_empty_file_changes_nothing(
    tmp_path: Path, rows: pa.Table, order: tuple[int, int], has_row_group: bool
) -> None:
    empty = tmp_path / "empty.parquet"
    with pq.ParquetWriter(empty, rows.schema) as writer:
        if has_row_group:
            writer.write_table(rows.slice(0, 0))
    full = write_parquet(tmp_path / "full.parquet", rows)
    paths = [(str(empty), full)[index] for index in order]
    schema = infer_schema(scan(plan_units(find_files(paths))), overrides={}, label=None)
    assert schema.num_rows == 40
    found, expected = read_rows(paths, schema), encode(schema, rows)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


# Damaged files


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + b"\x00" * 40 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)bad\.parquet cannot be read as Parquet .*; replace it or leave it out"):
        scan(plan_units(find_files([str(path)])))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "cut.parquet", people_table(40)))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as Parquet"):
        scan(plan_units(find_files([str(path)])))


def test_a_damaged_row_group_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "torn.parquet"
    pq.write_table(people_table(400), path, row_group_size=200, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(1)
    content = bytearray(path.read_bytes())
    for index in range(group.num_columns):
        start = group.column(index).data_page_offset
        end = start + group.column(index).total_compressed_size
        content[start + 8 : end] = bytes(255 - byte for byte in content[start + 8 : end])
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"(?s)torn\.parquet: row group 1 cannot be read .*; replace the file"):
        scan(plan_units(find_files([str(path)])))


def test_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    offsets = np.array([0, 1, 3] + [3] * 18, dtype=np.int32)
    texts = pa.StringArray.from_buffers(20, pa.py_buffer(offsets), pa.py_buffer(b"a\xff\xfe"))
    path = write_parquet(tmp_path / "latin.parquet", pa.table({"city": texts}))
    with pytest.raises(DataError, match=r"latin\.parquet.*city|city.*latin\.parquet"):
        scan(plan_units(find_files([path])))


# Which files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    table = pa.table({"x": [1.0]})
    for name in (
        "b.parquet",
        "a.parquet",
        "c.pq",
        "sub/d.parquet",
        "sub/deep/e.parquet",
        ".hidden.parquet",
        "_temporary/f.parquet",
        ".cache/g.parquet",
        "_part.parquet",
    ):
        write_parquet(tmp_path / name, table)
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def found(tree: Path, *paths: str) -> list[str]:
    return [str(Path(file.path).relative_to(tree)) for file in find_files([str(tree / path) for path in paths])]


def test_a_file_is_itself(tree: Path) -> None:
    (file,) = find_files([str(tree / "a.parquet")])
    assert (file.path, file.relative_path) == (str(tree / "a.parquet"), "a.parquet")
    assert file.num_bytes == (tree / "a.parquet").stat().st_size


def test_a_folder_is_its_parquet_files_sorted_without_hidden_ones(tree: Path) -> None:
    assert found(tree, ".") == ["a.parquet", "b.parquet", "c.pq", "sub/d.parquet", "sub/deep/e.parquet"]


def test_files_of_a_folder_are_named_below_it(tree: Path) -> None:
    assert [file.relative_path for file in find_files([str(tree / "sub")])] == ["d.parquet", "deep/e.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("?.pq", ["c.pq"]),
        ("[ab].parquet", ["a.parquet", "b.parquet"]),
        ("sub/*.parquet", ["sub/d.parquet"]),
        ("*/*.parquet", ["sub/d.parquet"]),
        ("sub/**/*.parquet", ["sub/d.parquet", "sub/deep/e.parquet"]),
        ("**/e.parquet", ["sub/deep/e.parquet"]),
        ("**/*.pq", ["c.pq"]),
    ],
)
def test_a_glob_follows_the_rules_of_the_shell(tree: Path, pattern: str, expected: list[str]) -> None:
    # Hidden files and those with an underscore have tests of their own.
    visible = [name for name in found(tree, pattern) if not name.startswith((".", "_"))]
    assert visible == expected


def test_a_glob_leaves_hidden_files_out(tree: Path) -> None:
    assert not [name for name in found(tree, "**/*.parquet") if name.startswith(".")]


def test_two_stars_and_a_name_match_whole_names_only(tree: Path) -> None:
    write_parquet(tree / "sub" / "prefix_a.parquet", pa.table({"x": [1.0]}))
    assert found(tree, "**/a.parquet") == ["a.parquet"]


def test_a_list_keeps_its_order_and_takes_each_file_once(tree: Path) -> None:
    assert found(tree, "sub", "b.parquet", "[ab].parquet") == [
        "sub/d.parquet",
        "sub/deep/e.parquet",
        "b.parquet",
        "a.parquet",
    ]


def test_relative_paths_and_globs_start_in_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for pattern in ("c.pq", "*.pq", "./*.pq"):
        assert [os.path.realpath(file.path) for file in find_files([pattern])] == [os.path.realpath(tree / "c.pq")]


def test_a_folder_with_a_bracket_in_its_name_is_found(tree: Path) -> None:
    write_parquet(tree / "run[1]" / "a.parquet", pa.table({"x": [1.0]}))
    assert found(tree, "run[1]") == ["run[1]/a.parquet"]


def test_a_missing_path_is_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.parquet does not exist; give a Parquet file"):
        find_files([str(tree / "nothing.parquet")])


def test_a_glob_in_a_missing_folder_is_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/\*\.parquet does not exist"):
        find_files([str(tree / "nowhere" / "*.parquet")])


def test_a_folder_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"holds no Parquet file \(looked for \*\.parquet, \*\.pq; .*'\.txt'"):
        find_files([str(tmp_path)])


def test_a_glob_that_matches_nothing_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match="holds no Parquet file"):
        find_files([str(tree / "z*.parquet")])


def test_no_paths_are_refused() -> None:
    with pytest.raises(DataError, match="no data given"):
        find_files([])


def test_a_file_url_is_a_path(tree: Path) -> None:
    assert [file.path for file in find_files([f"file://{tree}/a.parquet"])] == [str(tree / "a.parquet")]


def test_an_unknown_kind_of_url_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match="nosuch://"):
        find_files(["nosuch://bucket/a.parquet"])


def test_images_are_read_channels_last(tmp_path: Path) -> None:
    pixels = np.arange(12 * 192, dtype=np.int64).reshape(12, 192).astype(np.uint8)
    path = write_parquet(tmp_path / "a.parquet", pa.table({"pixels": list_array(pixels)}))
    schema = infer_schema(scan(plan_units(find_files([path]))), overrides={}, label=None)
    found_rows = read_rows([path], schema)["image.pixels"]
    assert found_rows.shape == (12, 8, 8, 3)
    assert np.array_equal(found_rows.reshape(12, -1), pixels)
