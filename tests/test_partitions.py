"""Folders named as Hive does (`year=2020/region=north`) are columns of the files below them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from builders import read_rows, write_parquet
from click.testing import CliRunner

import parvae
from parvae import Role
from parvae.bulk import plan, run, score_transform
from parvae.cli import vae as cli
from parvae.errors import DataError
from parvae.files import find_files
from parvae.recalibration import score_files
from parvae_pipeline.config import DataSettings
from parvae_pipeline.data_plan import KeptPlan, plan_data
from parvae_pipeline.units import plan_units

YEARS = ("2020", "2021", "__HIVE_DEFAULT_PARTITION__")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """120 rows a year, in two regions."""
    generator = np.random.default_rng(0)
    for year in YEARS:
        for region in ("north", "south%2Feast"):
            table = pa.table({"x": generator.normal(size=60)})
            write_parquet(tmp_path / "sales" / f"year={year}" / f"region={region}" / "part.parquet", table)
    return tmp_path / "sales"


def test_folders_give_names_and_values(tree: Path) -> None:
    found = {tuple((part.name, part.value) for part in file.partitions) for file in find_files([str(tree)])}
    years, regions = (2020, 2021, None), ("north", "south/east")
    assert found == {(("year", year), ("region", region)) for year in years for region in regions}


@pytest.mark.parametrize("paths", [["year=2020/region=north/part.parquet"], ["year=2020"], ["year=*/**/*.parquet"]])
def test_a_file_alone_knows_its_folders_too(tree: Path, paths: list[str]) -> None:
    for file in find_files([str(tree / path) for path in paths]):
        assert [part.name for part in file.partitions] == ["year", "region"]


def test_a_column_is_text_where_one_value_is(tree: Path) -> None:
    write_parquet(tree / "year=unknown" / "region=north" / "part.parquet", pa.table({"x": [1.0]}))
    units = plan_units(find_files([str(tree)]))
    assert units.schema.field("year").type == pa.string()
    assert {part.value for file in units.files for part in file.partitions[:1]} == {"2020", "2021", "unknown", None}


def test_folders_count_only_right_above_the_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rate=0.1" / "data" / "a.parquet", pa.table({"x": [1.0]}))
    (file,) = find_files([str(tmp_path)])
    assert file.partitions == ()


def test_training_sees_them_as_columns_where_that_is_asked_for(tree: Path) -> None:
    data = DataSettings(paths=(str(tree),), columns={"region": "category"})
    schema = plan_data(data, KeptPlan()).schema
    assert {column.name: column.role for column in schema} == {
        "x": Role.NUMERIC,
        "year": Role.IGNORED,
        "region": Role.CATEGORY,
    }
    assert schema["year"].reason == "named by the folders; --columns year:category has it modelled"
    path = write_parquet(tree.parent / "flat.parquet", ds.dataset(tree, partitioning="hive").to_table())
    for name, wanted in read_rows([path], schema).items():
        assert np.array_equal(read_rows([str(tree)], schema)[name], wanted)


def test_a_file_without_the_folders_is_named(tree: Path) -> None:
    write_parquet(tree / "loose.parquet", pa.table({"x": [1.0]}))
    with pytest.raises(DataError, match=r"(has one that the files before it lack:|lacks column) '(region|year)'"):
        plan_units(find_files([str(tree)]))


def test_a_column_of_the_file_goes_before_its_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x=7" / "a.parquet", pa.table({"x": [1.0, 2.0]}))
    (file,) = find_files([str(tmp_path)])
    assert file.with_partitions(pa.table({"x": [1.0, 2.0]})).to_pydict() == {"x": [1.0, 2.0]}
    assert plan_units([file]).schema.field("x").type == pa.float64()


def test_scores_of_partitioned_files_are_those_of_flat_ones(
    mixed_bundle: Path, mixed_table: pa.Table, tmp_path: Path
) -> None:
    vae = parvae.load(mixed_bundle)
    assert vae.schema["city"].is_modelled
    folders = {"partitioning": ["city", "target"], "partitioning_flavor": "hive"}
    ds.write_dataset(mixed_table, tmp_path / "in", format="parquet", **folders)
    files = find_files([str(tmp_path / "in")])
    assert len(files) > 2
    outcomes = run(plan(files, tmp_path / "out"), score_transform(vae, alpha=0.1), stamp={}, output=tmp_path / "out")
    assert sum(outcome.num_rows for outcome in outcomes) == mixed_table.num_rows
    wanted = dict(zip(mixed_table["id"].to_pylist(), vae.score(mixed_table).score.tolist(), strict=True))
    for file in files:
        scored = pq.ParquetFile(tmp_path / "out" / file.relative_path).read()
        assert not {"city", "target"}.intersection(scored.column_names)
        assert scored["score"].to_pylist() == pytest.approx([wanted[key] for key in scored["id"].to_pylist()], rel=1e-5)
    assert np.sort(score_files(vae, files)) == pytest.approx(np.sort(list(wanted.values())), rel=1e-5)
    again = pq.read_table(tmp_path / "out")
    assert {"city", "target", "score"}.issubset(again.column_names)
    assert again.num_rows == mixed_table.num_rows


def test_compressed_rows_keep_what_the_folders_say(tree: Path, tmp_path: Path) -> None:
    for arguments in (
        ["compress", str(tree), "-o", str(tmp_path / "x.vaez"), "--verify"],
        ["decompress", str(tmp_path / "x.vaez"), "-o", str(tmp_path / "back.parquet")],
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
    wanted = ds.dataset(tree, partitioning="hive").to_table()
    again = pq.read_table(tmp_path / "back.parquet")
    assert again.column_names == wanted.column_names
    assert again.to_pydict() == wanted.to_pydict()
