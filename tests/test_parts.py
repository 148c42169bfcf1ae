"""Large files in parts: the joined output is that of a single pass, and what was finished is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import parvae
from parvae import stream
from parvae.bulk import Task, attempt, plan, score_transform, sift
from parvae.files import find_files
from parvae.parts import Part, attempt_part, join, parts_of, remove_parts
from parvae.storage import place_of
from parvae.stream import Transform

STAMP = {"parvae.verb": "score", "parvae.model_id": "m", "parvae.settings": ""}


@pytest.fixture(scope="module")
def transform(mixed_bundle: Path) -> Transform:
    return score_transform(parvae.load(mixed_bundle), alpha=0.1)


@pytest.fixture
def source(tmp_path: Path, mixed_table: pa.Table) -> str:
    """Row groups of 130 rows, with a key column that is a dictionary, and another one in each row group."""
    table = pa.concat_tables([mixed_table] * 5)
    keys = pa.array([f"key {index // 7}" for index in range(len(table))]).dictionary_encode()
    path = tmp_path / "in" / "large.parquet"
    path.parent.mkdir()
    pq.write_table(table.append_column("group", keys), path, row_group_size=130)
    return str(path)


def task_of(source: str, output: str | Path) -> Task:
    (task,) = plan(find_files([source]), place_of(str(output)))
    return task


def in_parts(task: Task, number: float) -> list[Part]:
    return parts_of(task, part_bytes=int(task.file.num_bytes / number))


@pytest.mark.parametrize("number", [1.5, 4, 100])
def test_parts_joined_are_what_a_single_pass_writes(
    source: str, tmp_path: Path, transform: Transform, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 50)
    whole, shared = task_of(source, tmp_path / "whole.parquet"), task_of(source, tmp_path / "out" / "shared.parquet")
    assert attempt(whole, transform, stamp=STAMP).error is None
    parts = in_parts(shared, number)
    assert len(parts) == {1.5: 2, 4: 4, 100: 16}[number]
    for part in reversed(parts):
        assert attempt_part(part, transform, stamp=STAMP).error is None
    outcome = join(shared, parts, stamp=STAMP)
    assert (outcome.error, outcome.num_rows) == (None, 2000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shared.parquet"]
    assert (tmp_path / "out" / "shared.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    finished, _ = sift([shared], stamp=STAMP)
    assert finished[0].tally == outcome.tally


def test_parts_may_lie_in_a_bucket(source: str, tmp_path: Path, transform: Transform) -> None:
    whole, shared = task_of(source, tmp_path / "whole.parquet"), task_of(source, "memory://parts/shared.parquet")
    attempt(whole, transform, stamp=STAMP)
    parts = in_parts(shared, 3)
    for part in parts:
        assert attempt_part(part, transform, stamp=STAMP).error is None
        assert part.place.is_file()
    assert join(shared, parts, stamp=STAMP).error is None
    assert shared.output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not any(part.place.exists() for part in parts)


def test_empty_row_groups_make_no_part(tmp_path: Path, mixed_table: pa.Table, transform: Transform) -> None:
    with pq.ParquetWriter(tmp_path / "in.parquet", mixed_table.schema) as writer:
        for first, size in ((0, 0), (0, 200), (200, 0), (200, 200), (0, 0)):
            writer.write_table(mixed_table.slice(first, size))
    whole, shared = (task_of(str(tmp_path / "in.parquet"), tmp_path / f"{name}.parquet") for name in ("a", "b"))
    assert attempt(whole, transform, stamp=STAMP).num_rows == 400
    parts = in_parts(shared, 100)
    assert [part.num_rows for part in parts] == [200, 200]
    for part in parts:
        attempt_part(part, transform, stamp=STAMP)
    join(shared, parts, stamp=STAMP)
    assert shared.output.read_bytes() == whole.output.read_bytes()
    pq.write_table(mixed_table.slice(0, 0), tmp_path / "empty.parquet")
    assert in_parts(task_of(str(tmp_path / "empty.parquet"), tmp_path / "c.parquet"), 100) == []


def test_a_finished_part_is_kept_while_model_and_input_are_the_same(
    source: str, tmp_path: Path, transform: Transform
) -> None:
    def refuse(table: pa.Table) -> tuple[pa.Table, parvae.tally.Tally]:  # type: ignore[name-defined]
        raise AssertionError("the part was done before")

    task = task_of(source, tmp_path / "out.parquet")
    part = in_parts(task, 4)[1]
    attempt_part(part, transform, stamp=STAMP)
    assert attempt_part(part, refuse, stamp=STAMP).num_rows == part.num_rows
    with pytest.raises(AssertionError):
        attempt_part(part, refuse, stamp={**STAMP, "parvae.model_id": "other"})
    content = bytearray(Path(source).read_bytes())
    Path(source).write_bytes(content)  # the same size at another time
    (again,) = [part for part in in_parts(task_of(source, tmp_path / "out.parquet"), 4) if part.first_group == 4]
    with pytest.raises(AssertionError):
        attempt_part(again, refuse, stamp=STAMP)


def test_a_part_that_was_cut_off_is_no_output(source: str, tmp_path: Path, transform: Transform) -> None:
    task = task_of(source, tmp_path / "out.parquet")
    parts = in_parts(task, 3)
    for part in parts:
        attempt_part(part, transform, stamp=STAMP)
    cut = Path(str(parts[1].place))
    with pa.ipc.open_stream(cut) as reader:
        first, facts = reader.read_next_batch_with_custom_metadata()
        with pa.ipc.new_stream(tmp_path / "shorter", reader.schema) as writer:
            writer.write_batch(first, custom_metadata=facts)
    (tmp_path / "shorter").rename(cut)
    outcome = join(task, parts, stamp=STAMP)
    assert "holds 130 of" in str(outcome.error)
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_damaged_row_group_fails_its_part_alone(source: str, tmp_path: Path, transform: Transform) -> None:
    path = Path(source)
    column = pq.ParquetFile(path).metadata.row_group(5).column(2)
    content, start = bytearray(path.read_bytes()), column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(content))
    parts = in_parts(task_of(source, tmp_path / "out.parquet"), 100)
    errors = [attempt_part(part, transform, stamp=STAMP).error for part in parts]
    assert [index for index, error in enumerate(errors) if error] == [5]
    assert "large.parquet cannot be read to its end" in str(errors[5])


def test_what_a_killed_run_leaves_is_removed_and_nothing_else(source: str, tmp_path: Path) -> None:
    task = task_of(source, tmp_path / "out" / "a.parquet")
    ours = [".a.parquet.000000-000004.part", "..a.parquet.000004-000008.part.123.tmp"]
    theirs = [".b.parquet.000000-000004.part", "a.parquet.000000-000004.part", "a.parquet"]
    (tmp_path / "out").mkdir()
    for name in [*ours, *theirs]:
        (tmp_path / "out" / name).touch()
    remove_parts([task])
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(theirs)


def test_what_cannot_be_shared_out_is_one_piece(tmp_path: Path, source: str) -> None:
    small = task_of(source, tmp_path / "out.parquet")
    assert parts_of(small, part_bytes=small.file.num_bytes) == []
    pq.write_table(pa.table({"x": np.arange(10_000)}), tmp_path / "one.parquet")
    assert in_parts(task_of(str(tmp_path / "one.parquet"), tmp_path / "out.parquet"), 10) == []
    (tmp_path / "broken.parquet").write_bytes(b"no parquet" * 100)
    assert in_parts(task_of(str(tmp_path / "broken.parquet"), tmp_path / "out.parquet"), 10) == []
