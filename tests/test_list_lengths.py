"""Lists of several lengths: how many values a row has is a number of the model, and the values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import people_table, quick_settings, write_parquet
from conftest import export_bundle
from inferred import column_of

import parvae
from parvae.bulk import Task, attempt, score_transform
from parvae.errors import DataError, SettingError
from parvae.files import find_files
from parvae.schema import NumericFacts, Role
from parvae_pipeline.train import train

LENGTHS = np.random.default_rng(5).poisson(3.0, size=240)


def lists(lengths: Any, *, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(
        [None if n is None else [f"tag{i}" for i in range(n)] for n in lengths], kind or pa.list_(pa.string())
    )


def test_lists_of_several_lengths_are_their_length() -> None:
    column = column_of(lists(LENGTHS))
    assert (column.role, column.arrow_type) == (Role.NUMERIC, "list<item: string>")
    assert column.holds_lengths
    facts = column.facts_as(NumericFacts)
    assert (facts.mean, facts.minimum, facts.maximum) == (pytest.approx(LENGTHS.mean()), 0.0, LENGTHS.max())
    assert facts.step == 1.0
    assert column.reason.startswith(f"lists of 0 to {LENGTHS.max()} values, of which the number is modelled")


@pytest.mark.parametrize("values", [[[1.0, 2.0]] * 30 + [[1.0]] * 30, [[1, 2], [3]] * 30], ids=["floats", "integers"])
def test_lists_of_numbers_that_differ_in_length_are_too(values: list[Any]) -> None:
    assert column_of(values).holds_lengths


def test_a_list_that_is_null_has_no_length() -> None:
    column = column_of(lists([None, *LENGTHS[:59]]))
    assert (column.holds_lengths, column.num_nulls) == (True, 1)
    assert column.facts_as(NumericFacts).mean == pytest.approx(LENGTHS[:59].mean())


def test_texts_of_one_length_tell_nothing_and_may_not_be_named_numbers() -> None:
    column = column_of(lists([3] * 60))
    assert column.role is Role.IGNORED
    with pytest.raises(SettingError, match="cannot be numeric"):
        column_of(pa.array([[1.0, 2.0]] * 60, pa.list_(pa.float64(), 2)), override="numeric")


def test_a_vector_may_be_named_numbers_for_its_length() -> None:
    assert column_of([[1.0, 2.0]] * 30, override="numeric").holds_lengths


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return people_table().append_column("tags", lists([None, *LENGTHS[1:]], kind=pa.large_list(pa.string())))


@pytest.fixture(scope="module")
def vae(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> parvae.VAE:
    folder = tmp_path_factory.mktemp("lengths")
    train(quick_settings(write_parquet(folder / "rows.parquet", table, row_group_size=50)), folder / "run")
    return parvae.load(export_bundle(folder / "run"))


def mapping(table: pa.Table) -> dict[str, Any]:
    return {name: table[name].to_pylist() for name in table.column_names}


def test_tables_and_mappings_score_alike_and_lists_like_their_length(table: pa.Table, vae: parvae.VAE) -> None:
    some = table.slice(0, 40)
    wanted = vae.score(some).nats
    np.testing.assert_array_equal(vae.score(mapping(some)).nats, wanted)
    others = [None if tags is None else ["x"] * len(tags) for tags in some["tags"].to_pylist()]
    np.testing.assert_array_equal(vae.score({**mapping(some), "tags": others}).nats, wanted)
    same_length = {**mapping(some), "tags": [["a", "b"]] * 40}
    as_array = {**same_length, "tags": np.array([["a", "b"]] * 40)}
    np.testing.assert_array_equal(vae.score(as_array).nats, vae.score(same_length).nats)


def test_a_list_of_another_length_raises_the_score_and_is_blamed(table: pa.Table, vae: parvae.VAE) -> None:
    some = table.slice(1, 30)
    long = {**mapping(some), "tags": [["x"] * 90] * 30}
    before, after = vae.score(mapping(some)), vae.score(long)
    assert (after.nats > before.nats).all()
    assert set(np.array(vae.parts)[after.most_blamed(1)[:, 0]]) == {"tags"}


def test_what_is_written_is_the_length(table: pa.Table, vae: parvae.VAE) -> None:
    again = vae.reconstruct(table)
    assert again.schema.field("tags").type == pa.int64()
    assert vae.reconstruct(mapping(table))["tags"].dtype in (np.int64, np.float64)  # as floats where one is null
    drawn = vae.sample(200, seed=0)["tags"]
    known = drawn[~np.isnan(drawn.astype(float))].astype(float)
    assert (known == np.rint(known)).all()
    assert 0 <= known.min() <= known.max() <= LENGTHS.max()


def test_files_are_scored_and_explained(table: pa.Table, vae: parvae.VAE, tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", table, row_group_size=100)
    (file,) = find_files([str(tmp_path / "rows.parquet")])
    task = Task(file=file, output=tmp_path / "out.parquet")
    transform = score_transform(vae, alpha=None, num_explained=len(vae.schema.modelled))
    assert attempt(task, transform, stamp={"parvae.model_id": "m", "parvae.verb": "score"}).error is None
    found = pq.read_table(tmp_path / "out.parquet")["explanation"].to_pylist()
    tags = [entry for row in found for entry in row if entry["column"] == "tags"]
    assert {entry["observed"] for entry in tags} <= {None, *map(str, range(20))}
    assert {entry["observed"] for entry in tags} & set(map(str, range(20)))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([3] * 10, "'tags' holds 3, but the model was trained on lists"),
        (["abc"] * 10, "'tags' holds 'abc', but the model was trained on lists"),
    ],
)
def test_what_is_no_list_is_refused_by_name(table: pa.Table, vae: parvae.VAE, tags: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        vae.score({**mapping(table.slice(0, 10)), "tags": tags})
    with pytest.raises(DataError, match="'tags' is "):
        vae.score(table.slice(0, 10).set_column(table.column_names.index("tags"), "tags", pa.array(tags)))
