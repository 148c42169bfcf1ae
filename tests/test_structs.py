"""Structs are read as their fields, named with dots, in training and in scoring alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import people_table, quick_settings, write_parquet
from conftest import export_bundle

import parvae
from parvae.arrow import without_structs
from parvae.bulk import Task, attempt, score_transform
from parvae.errors import DataError
from parvae.files import find_files
from parvae.recalibration import score_files
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.train import train


def nested(table: pa.Table) -> pa.Table:
    """`body.height`, `body.weight` and `home.place.city` as structs, the other columns as they are."""
    body = pa.StructArray.from_arrays(
        [table["height"].combine_chunks(), table["weight"].combine_chunks()], ["height", "weight"]
    )
    place = pa.StructArray.from_arrays([table["city"].combine_chunks()], ["city"])
    home = pa.StructArray.from_arrays([place, table["embedding"].combine_chunks()], ["place", "embedding"])
    return pa.table({"body": body, "home": home, "member": table["member"]})


def flat(table: pa.Table) -> pa.Table:
    names = ["body.height", "body.weight", "home.place.city", "home.embedding", "member"]
    columns = [table[name.rpartition(".")[2]] for name in names]
    return pa.table(dict(zip(names, columns, strict=True)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run on nested rows, and the run on the same rows flat."""
    folder = tmp_path_factory.mktemp("structs")
    for name, form in (("nested", nested), ("flat", flat)):
        path = write_parquet(folder / f"{name}.parquet", form(people_table()), row_group_size=100)
        train(quick_settings(path), folder / name)
    return folder / "nested", folder / "flat"


def test_a_struct_trains_as_its_fields(runs: tuple[Path, Path]) -> None:
    nested_checkpoint, flat_checkpoint = (read_checkpoint(run / "ckpt.pt") for run in runs)
    columns = [column.name for column in nested_checkpoint.schema.modelled]
    assert sorted(columns) == ["body.height", "body.weight", "home.embedding", "home.place.city", "member"]
    assert columns == [column.name for column in flat_checkpoint.schema.modelled]
    weights = flat_checkpoint.model.state_dict()
    for name, tensor in nested_checkpoint.model.state_dict().items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


def test_nested_rows_score_and_reconstruct_as_flat_ones(runs: tuple[Path, Path], tmp_path: Path) -> None:
    rows = people_table(50, seed=1)
    path = export_bundle(runs[0])
    vae = parvae.load(path)
    expected = vae.score(flat(rows)).nats
    np.testing.assert_array_equal(vae.score(nested(rows)).nats, expected)
    assert vae.reconstruct(nested(rows)).equals(vae.reconstruct(flat(rows)))
    files = find_files([write_parquet(tmp_path / "rows.parquet", nested(rows))])
    np.testing.assert_array_equal(score_files(vae, files), expected)
    task = Task(file=files[0], output=tmp_path / "scores.parquet")
    stamp = {"parvae.model_id": "m", "parvae.verb": "score"}
    assert attempt(task, score_transform(vae, alpha=None), stamp=stamp).error is None
    assert pq.read_table(tmp_path / "scores.parquet")["score"].to_pylist() == expected.tolist()


def test_a_null_struct_has_null_fields() -> None:
    table = without_structs(pa.table({"a": pa.array([{"x": 1}, None]), "b": [1, 2]}))
    assert table.to_pydict() == {"a.x": [1, None], "b": [1, 2]}


def test_a_field_that_takes_the_name_of_a_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"two columns 'a\.x', one of them the field of a struct; rename one"):
        without_structs(pa.table({"a": pa.array([{"x": 1}]), "a.x": [2]}))
