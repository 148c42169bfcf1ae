"""Which texts are a category, which of their values are listed, and which are told by their hash."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from inferred import column_of

from parvae.schema import CategoryFacts, Role
from parvae_pipeline.category_rules import MAX_LEVELS
from parvae_pipeline.hashing import murmur3
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import MAX_DISTINCT, statistics_of


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


# Told by their hash


def towns(num_rows: int) -> list[str]:
    """Three towns of a fifth of the rows each, and villages of four rows."""
    return [f"town {number % 3}" if number % 5 < 3 else f"village {number // 10}" for number in range(num_rows)]


def test_values_that_come_again_but_seldom_are_told_by_their_hash() -> None:
    column = column_of(towns(12_000), name="place")
    assert column.role is Role.CATEGORY
    assert column.reason == (
        "1,203 distinct values, of which the 3 frequent ones hold 60%; the others are told by their hash (64 buckets)"
    )


def test_each_bucket_is_named_by_its_most_frequent_value() -> None:
    values = [*(f"v{number}" for number in range(500)), *["v7"] * 2] * 4
    facts = column_of(values).facts_as(CategoryFacts)
    assert facts.num_buckets == 32
    assert facts.num_unlisted == 0
    bucket_of = dict(zip(facts.buckets, facts.levels[len(facts.own_levels) :], strict=True))
    assert set(bucket_of) == set((murmur3([f"v{number}" for number in range(500)]) % 32).tolist())
    for bucket, level in bucket_of.items():
        assert murmur3([level]) % 32 == bucket


def test_values_that_come_once_are_not_told_by_their_hash() -> None:
    column = column_of([*["frequent"] * 4_000, *(f"v{number}" for number in range(3_000))])
    facts = column.facts_as(CategoryFacts)
    assert (facts.levels, facts.buckets, facts.num_unlisted) == (("frequent",), (), 3_000)


def test_numbers_named_a_category_are_told_by_their_hash_too() -> None:
    facts = column_of(np.arange(12_000) % 2_000, override="category").facts_as(CategoryFacts)
    assert (len(facts.own_levels), facts.num_buckets) == (1_000, 64)
