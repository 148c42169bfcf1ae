"""Which values of a category column are listed as levels, and what becomes of the others."""

from __future__ import annotations

import math
from collections import Counter

from parvae.schema import CategoryFacts, Role
from parvae_pipeline.hashing import murmur3
from parvae_pipeline.statistics import ColumnStatistics

MAX_LEVELS = 1_000
"""Values that a category column lists."""
MAX_LEVEL_SHARE = 0.2
MIN_LEVEL_ROWS, MIN_ROWS_FOR_RARE, MAX_RARE_SHARE = 5, 1_000, 0.01
"""From 1,000 rows on levels with fewer than 5 are too rare to learn: where together they take no more than this share,
they count as one, which is unseen."""
MIN_FREQUENT_SHARE = 0.5
"""Of the rows that the frequent levels of a text with many must hold together, where the others cannot be told by their
hash: with less there is little to learn."""
MAX_BUCKETS, MIN_BUCKETS = 1_024, 8
"""A made table of 60,000 rows, 2,851 post codes and the place of each, two minutes on one core: rows with the code of
another are told with an AUC of 0.997; with all but the 1,000 most frequent codes as unseen 0.879."""
MIN_BUCKET_ROWS = 50
MAX_HASHED_SHARE = 1 / 3
"""Distinct values for each row of those that are not listed; with fewer than three rows a value a hash says nothing."""


def has_many_levels(column: ColumnStatistics) -> bool:
    """Whether there are more values than a category lists whole."""
    return len(column.levels) > min(MAX_LEVELS, max(20, MAX_LEVEL_SHARE * column.num_rows))


def suggest_many(column: ColumnStatistics) -> tuple[Role, str]:
    """The role of a text that has many levels and is neither an identifier nor prose."""
    frequent = _frequent(column)
    share = sum(count for _, count in frequent) / max(1, column.num_rows_of_levels)
    many = f"more than {len(column.levels) - 1:,}" if column.overflowed else f"{len(column.levels):,}"
    if share < MIN_FREQUENT_SHARE and not _num_buckets(column, frequent):
        return Role.IGNORED, (
            f"{many} distinct values; --columns {column.name}:category keeps the {MAX_LEVELS:,} most frequent"
        )
    which = f"the {len(frequent):,} frequent ones hold {share:.0%}" if frequent else "none is frequent"
    return Role.CATEGORY, f"{many} distinct values, of which {which}"


def category_facts(column: ColumnStatistics) -> CategoryFacts:
    """The levels of a column by falling frequency: those with rows enough to learn from where there are many, then one
    for each bucket that others are hashed to."""
    kept = column.levels.most_common(MAX_LEVELS)
    frequent = _frequent(column)
    num_rare = column.levels.total() - sum(count for _, count in frequent)
    is_rare = column.num_rows >= MIN_ROWS_FOR_RARE and num_rare <= MAX_RARE_SHARE * column.num_rows
    num_buckets = 0 if is_rare or not has_many_levels(column) else _num_buckets(column, frequent)
    if is_rare or num_buckets or (frequent and column.family == "text" and has_many_levels(column)):
        kept = frequent
    levels = tuple(level for level, _ in kept)
    if num_buckets:
        named = _named_buckets(column, levels, num_buckets)
        return CategoryFacts(levels=(*levels, *named.values()), num_buckets=num_buckets, buckets=tuple(named))
    # Where the count of levels was broken off, it stands for the rows after it.
    unlisted_share = 1.0 - sum(count for _, count in kept) / column.num_rows_of_levels
    num_unlisted = round(unlisted_share * (column.num_rows - column.num_nulls))
    return CategoryFacts(levels=levels, num_unlisted=max(0, num_unlisted))


def unlisted_text(facts: CategoryFacts) -> str:
    """What becomes of the values that are not listed, in words; nothing where there are none."""
    if facts.buckets:
        which = "the others" if facts.own_levels else "they"
        return f"{which} are told by their hash ({facts.num_buckets:,} buckets)"
    return f"{facts.num_unlisted:,} rows with rarer values count as unseen" if facts.num_unlisted else ""


def _frequent(column: ColumnStatistics) -> list[tuple[str, int]]:
    """The levels with rows enough to learn from, and their counts."""
    return [(level, count) for level, count in column.levels.most_common(MAX_LEVELS) if count >= MIN_LEVEL_ROWS]


def _num_buckets(column: ColumnStatistics, frequent: list[tuple[str, int]]) -> int:
    """A power of two with rows enough for each bucket, or 0 where a hash would tell nothing."""
    num_counted = column.num_rows_of_levels - sum(count for _, count in frequent)
    if len(column.levels) - len(frequent) > MAX_HASHED_SHARE * num_counted:
        return 0
    num_rows = num_counted / column.num_rows_of_levels * (column.num_rows - column.num_nulls)
    num_buckets = min(MAX_BUCKETS, 2 ** math.floor(math.log2(max(1.0, num_rows / MIN_BUCKET_ROWS))))
    return num_buckets if num_buckets >= MIN_BUCKETS else 0


def _named_buckets(column: ColumnStatistics, listed: tuple[str, ...], num_buckets: int) -> dict[int, str]:
    """The buckets that hold values which are not listed, by falling frequency, each with the most frequent of them."""
    is_listed = frozenset(listed)
    others = [(level, count) for level, count in column.levels.most_common() if level not in is_listed]
    numbers = (murmur3([level for level, _ in others]) % num_buckets).tolist()
    names: dict[int, str] = {}
    num_rows: Counter[int] = Counter()
    for number, (level, count) in zip(numbers, others, strict=True):
        names.setdefault(number, level)
        num_rows[number] += count
    return {number: names[number] for number, _ in num_rows.most_common()}
