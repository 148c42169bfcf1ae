"""The files of a data set: which they are, and what is said of those that are damaged or disagree."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import list_array, people_table, read_rows, write_parquet

from parvae.errors import DataError
from parvae.files import find_files
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.units import plan_units

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
