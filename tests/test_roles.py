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
from parvae_pipeline.roles import MAX_LEVELS, MIN_ROWS, infer_schema
from parvae_pipeline.statistics import MAX_DISTINCT, statistics_of


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


# Categories


def test_a_few_texts_are_a_category_by_falling_frequency() -> None:
    column = column_of(["b"] * 30 + ["a"] * 20 + ["c"] * 10)
    assert column.role is Role.CATEGORY
    assert column.reason == "3 distinct values"
    assert column.facts_as(CategoryFacts) == CategoryFacts(levels=("b", "a", "c"), num_unlisted=0)


def test_dictionary_columns_are_read_like_the_texts_they_hold() -> None:
    assert column_of(pa.array(["a", "b", "a"] * 20).dictionary_encode()).role is Role.CATEGORY


def many_texts(num_levels: int, words: int) -> list[str]:
    return [" ".join([f"w{number}"] * words) for number in range(num_levels)] * 2


def test_too_many_texts_are_ignored_with_the_remedy() -> None:
    column = column_of(many_texts(60, 1), name="street")
    assert column.role is Role.IGNORED
    assert column.reason == "60 distinct values; --columns street:category keeps the 1,000 most frequent"


def test_free_text_is_ignored_with_the_remedy() -> None:
    column = column_of(many_texts(60, 5))
    assert column.role is Role.IGNORED
    assert column.reason == "free text, 5 words a value; embed it into a list of floats to use it"


def test_more_texts_than_are_counted_say_more_than() -> None:
    values = [f"v{number}" for number in range(MAX_DISTINCT + 5)] * 2
    column = column_of(values)
    assert column.role is Role.IGNORED
    assert column.reason.startswith("more than 20,0")
    assert "distinct values; --columns c:category" in column.reason


def test_a_text_with_many_values_keeps_those_that_hold_most_rows() -> None:
    frequent = [f"city{number % 40}" for number in range(600)]
    column = column_of([*frequent, *(f"hamlet{number}" for number in range(400))], name="place")
    assert column.role is Role.CATEGORY
    assert column.reason == (
        "440 distinct values, of which the 40 frequent ones hold 60%; 400 rows with rarer values count as unseen"
    )
    facts = column.facts_as(CategoryFacts)
    assert sorted(facts.levels) == sorted({*frequent})
    assert facts.num_unlisted == 400


def test_a_text_with_more_values_than_are_counted_keeps_its_frequent_ones_by_their_share() -> None:
    values = [value for number in range(MAX_DISTINCT + 10) for value in ("common", f"v{number}")]
    pieces = [pa.table({"c": values[first : first + 1_000]}) for first in range(0, len(values), 1_000)]
    statistics = statistics_of(pieces[0])["c"]
    for piece in pieces[1:]:
        statistics.merge(statistics_of(piece)["c"])
    assert statistics.overflowed
    column = infer_schema({"c": statistics}, overrides={}, label=None)["c"]
    assert column.role is Role.CATEGORY
    facts = column.facts_as(CategoryFacts)
    assert facts.levels == ("common",)
    assert facts.num_unlisted == pytest.approx(MAX_DISTINCT + 10, abs=1)


def test_a_category_named_by_hand_keeps_the_most_frequent_levels() -> None:
    frequent = [f"f{number}" for number in range(MAX_LEVELS)] * 2
    column = column_of([*frequent, *(f"rare{number}" for number in range(30))], override="category")
    facts = column.facts_as(CategoryFacts)
    assert len(facts.levels) == MAX_LEVELS
    assert all(level.startswith("f") for level in facts.levels)
    assert facts.num_unlisted == 30


def test_a_category_counts_unlisted_rows_beyond_the_bound_too() -> None:
    values = [f"v{number}" for number in range(MAX_DISTINCT + 500)]
    pieces = [statistics_of(pa.table({"c": values[:MAX_DISTINCT]})), statistics_of(pa.table({"c": values * 2}))]
    pieces[0]["c"].merge(pieces[1]["c"])
    facts = infer_schema(pieces[0], overrides={"c": "category"}, label=None)["c"].facts_as(CategoryFacts)
    assert facts.num_unlisted > 2 * MAX_DISTINCT


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
