"""The plan that is kept beside a run: what has not changed is not read again."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import numbered_files, people_table, quick_settings, write_parquet

from parvae.errors import DataError
from parvae.files import DataFile, find_files
from parvae.storage import place_of, write_whole
from parvae_pipeline import scan as scan_module
from parvae_pipeline.config import DataSettings
from parvae_pipeline.data_plan import DataPlan, KeptPlan, plan_data
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.scan import Statistics, merged, parts_of, scan
from parvae_pipeline.train import train
from parvae_pipeline.units import Footer, Units, plan_units, read_footers


class Planner:
    """Plans and keeps what it finds; remembers what it had to read."""

    def __init__(self, folder: Path) -> None:
        self.kept_at = folder / "plan.parquet"
        self.read: list[str] = []
        self.num_scans = 0

    def __call__(self, *paths: str, columns: dict[str, str] | None = None) -> DataPlan:
        self.read, self.num_scans = [], 0
        settings = DataSettings(paths=paths, columns=columns or {})
        found = plan_data(settings, KeptPlan.read(self.kept_at), read=self._read, scan=self._scan)
        if found.to_keep is not None:
            self.kept_at.write_bytes(found.to_keep)
        return found

    def _read(self, files: Sequence[DataFile]) -> Iterator[Footer]:
        self.read = [file.relative_path for file in files]
        return read_footers(files)

    def _scan(self, units: Units) -> Statistics:
        self.num_scans += 1
        return scan(units)


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


def assert_same(found: DataPlan, expected: DataPlan) -> None:
    assert found.schema == expected.schema
    assert found.units.schema == expected.units.schema
    assert found.units.files == expected.units.files
    for name in ("file_index", "row_group", "num_rows", "num_bytes", "first_row"):
        ours, theirs = getattr(found.units, name), getattr(expected.units, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_second_plan_reads_nothing_and_is_the_same(planner: Planner, tmp_path: Path) -> None:
    numbered_files(tmp_path / "data", [[30, 20], [], [40, 0, 10], [0]])
    first = planner(str(tmp_path / "data"))
    assert (len(planner.read), planner.num_scans) == (4, 1)
    second = planner(str(tmp_path / "data"))
    assert (planner.read, planner.num_scans, second.to_keep) == ([], 0, None)
    assert_same(second, first)
    assert second.units.row_group.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("change", ["grown", "touched"])
def test_a_file_that_changed_is_read_again_and_no_other(planner: Planner, tmp_path: Path, change: str) -> None:
    paths = numbered_files(tmp_path / "data", [[30], [40], [50]])
    planner(str(tmp_path / "data"))
    if change == "grown":
        numbered_files(tmp_path / "data" / "new", [[7, 7]])
        (tmp_path / "data" / "new" / "0000.parquet").rename(paths[1])
    else:
        os.utime(paths[1], ns=(1, 1))
    again = planner(str(tmp_path / "data"))
    assert (planner.read, planner.num_scans) == (["0001.parquet"], 1)
    assert_same(again, Planner(tmp_path / "data")(str(tmp_path / "data")))


def test_files_that_do_not_tell_when_they_changed_are_read_again(planner: Planner, tmp_path: Path) -> None:
    (path,) = numbered_files(tmp_path, [[30]])
    write_whole(place_of("memory://undated/data.parquet"), Path(path).read_bytes())
    first = planner("memory://undated/data.parquet")
    assert [file.modified_ns for file in first.units.files] == [0]
    assert_same(planner("memory://undated/data.parquet"), first)
    assert (planner.read, planner.num_scans) == (["data.parquet"], 1)


def test_files_may_come_and_go(planner: Planner, tmp_path: Path) -> None:
    paths = numbered_files(tmp_path / "data", [[30], [40], [50]])
    planner(*paths[:2])
    found = planner(*paths[1:])
    assert (planner.read, planner.num_scans) == (["0002.parquet"], 1)
    assert found.units.num_rows.tolist() == [40, 50]


def test_other_roles_are_found_anew_from_the_same_footers(planner: Planner, tmp_path: Path) -> None:
    paths = numbered_files(tmp_path / "data", [[30], [40]])
    planner(*paths)
    found = planner(*paths, columns={"x": "ignored"})
    assert (planner.read, planner.num_scans) == ([], 1)
    assert found.schema["x"].role == "ignored"


def test_each_file_keeps_its_own_types(planner: Planner, tmp_path: Path) -> None:
    null = write_parquet(tmp_path / "0.parquet", pa.table({"x": pa.nulls(30)}))
    numbers = write_parquet(tmp_path / "1.parquet", pa.table({"x": np.arange(5.0)}))
    texts = write_parquet(tmp_path / "2.parquet", pa.table({"x": ["a", "b"] * 10}))
    planner(null, numbers)
    assert planner(null, numbers).units.schema.field("x").type == pa.float64()
    assert planner(null, texts).units.schema.field("x").type == pa.string()
    with pytest.raises(DataError, match=r"2\.parquet: column 'x' is string, but double"):
        planner(null, numbers, texts)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def foreign(path: Path) -> None:
    write_parquet(path, pa.table({"x": [1]}))


@pytest.mark.parametrize("change", [damaged, foreign])
def test_a_kept_plan_that_cannot_be_read_is_made_anew(
    planner: Planner, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    paths = numbered_files(tmp_path / "data", [[30], [40]])
    first = planner(*paths)
    change(planner.kept_at)
    assert_same(planner(*paths), first)
    assert len(planner.read) == 2
    planner(*paths)
    assert planner.read == []


def test_a_resumed_run_reads_no_file_for_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = numbered_files(tmp_path / "data", [[40, 40], [60]])
    settings = quick_settings(str(tmp_path / "data"), max_steps=25)
    train(settings, tmp_path / "run")
    assert RunFolder(tmp_path / "run").plan_path.exists()

    def refuse(*_: object) -> None:
        raise AssertionError("the statistics pass reads every row")

    monkeypatch.setattr("parvae_pipeline.scan._of_unit", refuse)
    monkeypatch.setattr("parvae_pipeline.units._read_footer", refuse)
    train(settings, tmp_path / "run")
    os.utime(paths[0], ns=(1, 1))
    with pytest.raises(AssertionError):
        train(settings, tmp_path / "run")


@pytest.mark.parametrize("part_bytes", [1, 100, 700, 10**9])
def test_parts_read_apart_and_merged_are_the_whole_pass_to_the_last_bit(
    tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "PART_BYTES", part_bytes)
    tables = pa.table({"x": np.random.default_rng(0).normal(size=200), "y": ["a", "b"] * 100})
    for index, size in enumerate((40, 1, 100, 59)):
        write_parquet(tmp_path / f"{index}.parquet", tables.slice(0, size), row_group_size=13)
    units = plan_data(DataSettings(paths=(str(tmp_path),)), KeptPlan()).units
    parts = parts_of(units)
    assert [unit for part in parts for unit in part] == list(range(len(units)))
    assert len(parts) == {1: len(units), 10**9: 1}.get(part_bytes, len(parts))
    whole = scan(units)
    assert merged(scan(units.part(part.start, part.stop)) for part in parts) == whole


def test_what_processes_send_each_other_arrives_as_it_was(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "people.parquet", people_table(120), row_group_size=50)
    units = plan_units(find_files([path]))
    (footer,) = read_footers(units.files)
    for sent in (units, footer):
        arrived = pickle.loads(pickle.dumps(sent))
        assert str(arrived.schema) == str(sent.schema)
        np.testing.assert_array_equal(arrived.num_rows, sent.num_rows)
    statistics = scan(units)
    arrived = pickle.loads(pickle.dumps(statistics))
    assert arrived == statistics
    assert str(arrived["embedding"].arrow_type) == str(statistics["embedding"].arrow_type)
