"""Role inference: each rule with its reason, what overrules it, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import list_array
from inferred import ANCHOR, NUM_ROWS, RNG, column_of, schema_of

from parvae.errors import DataError, SettingError
from parvae.schema import (
    BooleanFacts,
    CategoryFacts,
    NumericFacts,
    Role,
)
from parvae_pipeline.roles import MIN_ROWS


def pixels(num_rows: int, size: int) -> pa.Array:
    return list_array(RNG.integers(0, 256, size=(num_rows, size)).astype(np.uint8))


def test_floats_are_numeric_with_their_range() -> None:
    column = column_of([0.5, 1.5, 9.25] * 20)
    assert column.role is Role.NUMERIC
    assert column.reason.startswith("numbers from 0.5 to 9.25; ")
    facts = column.facts_as(NumericFacts)
    assert facts.mean == pytest.approx(3.75)
    assert facts.stddev == pytest.approx(np.std([0.5, 1.5, 9.25]))
    assert (facts.minimum, facts.maximum, facts.resolution) == (0.5, 9.25, 1.0)


def test_whole_numbers_say_so() -> None:
    assert column_of([1, 2, 7] * 20).reason.startswith("whole numbers from 1 to 7; ")
    assert column_of([1.0, 2.0, 7.0] * 20).reason.startswith("whole numbers from 1 to 7; ")


def test_few_whole_numbers_over_many_rows_are_codes() -> None:
    assert column_of([0, 1, 5] * 100).role is Role.CATEGORY
    assert column_of([0, 1] * 20).role is Role.CATEGORY
    assert column_of([-1, 1, 5] * 100).role is Role.NUMERIC
    assert column_of(list(range(21)) * 100).role is Role.NUMERIC
    assert "codes" in column_of([0, 1, 5] * 100).reason


def test_levels_with_fewer_than_five_rows_count_as_unseen_and_the_reason_says_how_many() -> None:
    column = column_of(["a"] * 600 + ["b"] * 500 + ["c"] * 4 + ["d"])
    assert column.facts_as(CategoryFacts).levels == ("a", "b")
    assert column.facts_as(CategoryFacts).num_unlisted == 5
    assert "5 rows with rarer values count as unseen" in column.reason


@pytest.mark.parametrize("name", ["label", "Target", "is_fraud", "anomaly", "y"])
def test_a_modelled_column_named_like_a_label_says_so(name: str) -> None:
    assert f"named like a label, and modelled, --label {name} keeps it out" in column_of([0, 1] * 30, name=name).reason
    assert "named like a label" not in column_of([0, 1] * 30, name=f"{name}_of_day").reason


def test_mostly_distinct_text_named_like_an_identifier_is_a_key() -> None:
    texts = [f"k{index % 60}" for index in range(100)]
    assert column_of(texts, name="order_id").role is Role.KEY
    assert column_of(texts, name="order").role is not Role.KEY


def test_infinities_are_read_as_null_and_the_reason_says_it() -> None:
    column = column_of([1.0, 2.5, float("inf"), float("nan"), None] * 12)
    assert column.role is Role.NUMERIC
    assert column.reason.startswith("numbers from 1 to 2.5, 12 infinite read as null; ")
    assert column.num_nulls == 36


def test_decimals_are_numeric() -> None:
    column = column_of([Decimal("1.25"), Decimal("2.50"), Decimal("9.00")] * 20)
    assert column.arrow_type == "decimal128(3, 2)"
    assert column.role is Role.NUMERIC
    assert column.facts_as(NumericFacts).resolution == 1.25


@pytest.mark.parametrize(
    ("values", "text"), [([7] * 20, "7"), ([2.5] * 20, "2.5"), (["x"] * 20, "'x'"), ([True] * 20, "'true'")]
)
def test_a_constant_is_kept_as_a_check(values: list[Any], text: str) -> None:
    column = column_of(values)
    assert column.role is Role.CATEGORY
    assert column.reason == f"always {text}: kept as a check"
    assert len(column.facts_as(CategoryFacts).levels) == 1


def test_a_constant_with_nulls_is_still_one_level() -> None:
    column = column_of([7, None] * 10)
    assert column.role is Role.CATEGORY
    assert column.num_nulls == 10


# Keys


@pytest.mark.parametrize("name", ["id", "ID", "uuid", "user_id", "Order_Key", "key"])
def test_whole_numbers_named_like_an_identifier_are_keys(name: str) -> None:
    column = column_of((np.arange(NUM_ROWS) * 1000).tolist(), name=name)
    assert column.role is Role.KEY
    assert column.reason == "named like an identifier, whole and mostly distinct"
    assert column.facts is None


@pytest.mark.parametrize("name", ["idea", "paid", "monkey", "humidity"])
def test_names_that_only_hold_those_letters_are_no_keys(name: str) -> None:
    assert column_of((np.arange(NUM_ROWS) * 1000).tolist(), name=name).role is Role.NUMERIC


def test_an_identifier_that_repeats_is_a_number() -> None:
    assert column_of([1, 2, 3] * 20, name="shop_id").role is Role.NUMERIC


def test_a_measurement_named_like_an_identifier_is_a_number() -> None:
    assert column_of(RNG.normal(size=NUM_ROWS), name="id").role is Role.NUMERIC


def test_a_row_counter_is_a_key_whatever_its_name() -> None:
    column = column_of(RNG.permutation(NUM_ROWS) + 500, name="n")
    assert column.role is Role.KEY
    assert column.reason == "counts the rows: whole, distinct and without large gaps"


def test_distinct_whole_numbers_with_gaps_are_numeric() -> None:
    assert column_of((np.arange(NUM_ROWS) * 5).tolist(), name="n").role is Role.NUMERIC


def test_distinct_texts_are_a_key() -> None:
    column = column_of([f"row {number}" for number in range(NUM_ROWS)])
    assert column.role is Role.KEY
    assert column.reason == "every value is distinct"


# Truths, dates, nothing


def test_true_and_false_are_boolean_with_their_share() -> None:
    column = column_of([True, True, False, None] * 15)
    assert column.role is Role.BOOLEAN
    assert column.reason == "true or false"
    assert column.facts_as(BooleanFacts).share_true == pytest.approx(2.0 / 3.0)
    assert column.num_nulls == 15


@pytest.mark.parametrize(
    "array",
    [
        pa.array([b"x"] * 20),
        pa.array([{"a": 1}] * 20),
    ],
    ids=["binary", "struct"],
)
def test_types_that_are_not_read_are_ignored_with_the_remedy(array: pa.Array) -> None:
    column = column_of(array)
    assert column.role is Role.IGNORED
    assert column.reason == f"type {array.type} is not read yet; turn it into numbers or text to use it"


@pytest.mark.parametrize(
    "array",
    [
        pa.nulls(20),
        pa.nulls(20, pa.int64()),
        pa.nulls(20, pa.string()),
        pa.nulls(20, pa.bool_()),
        pa.nulls(20, pa.list_(pa.float32(), 2)),
        pa.array([float("nan")] * 20),
    ],
    ids=str,
)
def test_a_column_of_nulls_is_ignored(array: pa.Array) -> None:
    column = column_of(array)
    assert column.role is Role.IGNORED
    assert column.reason == "every value is null; fill it or leave it out"


# What overrules the rules


def test_a_named_role_overrules_the_rule_and_says_so() -> None:
    column = column_of([1, 2, 7] * 20, override="category")
    assert column.role is Role.CATEGORY
    assert column.reason == "named by --columns"
    assert set(column.facts_as(CategoryFacts).levels) == {"1", "2", "7"}


@pytest.mark.parametrize("role", ["key", "ignored", "label"])
def test_any_column_can_be_left_out_of_the_model(role: str) -> None:
    assert column_of(RNG.normal(size=20), override=role).role is Role(role)


def test_the_label_is_carried_and_never_modelled() -> None:
    schema = schema_of({"x": ANCHOR, "y": pa.array([0, 1] * 30)}, label="y")
    assert schema["y"].role is Role.LABEL
    assert schema["y"].reason == "named as the label"
    assert [column.name for column in schema.modelled] == ["x"]


def test_the_label_goes_before_a_named_role() -> None:
    schema = schema_of({"x": ANCHOR, "y": pa.array([0, 1] * 30)}, overrides={"y": "numeric"}, label="y")
    assert schema["y"].role is Role.LABEL


def test_columns_keep_the_order_of_the_file() -> None:
    schema = schema_of({"b": ANCHOR, "a": ANCHOR, "c": pa.array([True, False] * 30)})
    assert [column.name for column in schema] == ["b", "a", "c"]
    assert schema.num_rows == NUM_ROWS


@pytest.mark.parametrize("where", ["overrides", "label"])
def test_an_unknown_column_lists_those_there_are(where: str) -> None:
    with pytest.raises(SettingError, match=r"no column is named 'z'; there are 'x', 'y'"):
        schema_of(
            {"x": ANCHOR, "y": ANCHOR},
            overrides={"z": "key"} if where == "overrides" else None,
            label="z" if where == "label" else None,
        )


def test_an_unknown_role_lists_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"column 'x': 'colour' is no role; there are 'numeric', 'category'"):
        schema_of({"x": ANCHOR}, overrides={"x": "colour"})


@pytest.mark.parametrize(
    ("values", "role", "needs"),
    [
        (["a", "b"] * 10, "numeric", "finite numbers"),
        ([None] * 20, "numeric", "finite numbers"),
        ([1.5, 2.5] * 10, "boolean", "true and false"),
        ([[1.0, 2.0]] * 20, "category", "text, numbers or true and false"),
        (["a", "b"] * 10, "vector", "lists of numbers"),
        ([[1.0, 2.5]] * 20, "image", "whole numbers from 0 to 255"),
        ([[1.0] * 7] * 20, "image", "a square, or field metadata shape"),
    ],
)
def test_a_role_that_the_values_cannot_play_says_what_it_needs(values: list[Any], role: str, needs: str) -> None:
    with pytest.raises(SettingError, match=rf"column 'c' .* cannot be {role}: that needs {needs}"):
        column_of(values, override=role)


# Too little


@pytest.mark.parametrize("num_rows", [0, 1, MIN_ROWS - 1])
def test_too_few_rows_are_refused(num_rows: int) -> None:
    with pytest.raises(DataError, match=rf"has {num_rows} rows; training needs at least {MIN_ROWS}"):
        schema_of({"x": pa.array(np.arange(num_rows) * 1.5)})


def test_the_smallest_data_set_is_accepted() -> None:
    assert schema_of({"x": pa.array(np.arange(MIN_ROWS) * 1.5)}).num_rows == MIN_ROWS


def test_no_columns_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="0 rows"):
        schema_of({})


def test_nothing_left_to_model_names_every_reason() -> None:
    table = {"id": pa.array(range(20)), "when": pa.array([b"x"] * 20), "none": pa.nulls(20)}
    with pytest.raises(DataError, match="no column is left to model") as caught:
        schema_of(table)
    for text in ("'id': named like", "'when': type binary", "'none': every value is null", "--columns name:role"):
        assert text in str(caught.value)
