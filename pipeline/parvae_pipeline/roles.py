"""Which role a column plays, and why: rules over its statistics, each decision with a reason in words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from parvae.arrow import TEMPORAL_FAMILIES
from parvae.errors import DataError, SettingError, listed
from parvae.schema import (
    BooleanFacts,
    CategoryFacts,
    Column,
    Facts,
    ImageFacts,
    NumericFacts,
    Role,
    Schema,
    VectorFacts,
)
from parvae_pipeline.category_rules import category_facts, has_many_levels, suggest_many, unlisted_text
from parvae_pipeline.image_roles import encoded_facts, suggest_encoded
from parvae_pipeline.numeric_rules import numeric_facts, plain_facts
from parvae_pipeline.statistics import ColumnStatistics

MAX_CODES = 20
"""Distinct whole numbers, and at least 100 rows for each, that read as codes and not as a quantity."""
KEY_SHARE = 0.999
KEY_NAME = re.compile(r"(?i)^(id|uuid|guid|key|.*_id|.*_uuid|.*_key)$")
LABEL_NAME = re.compile(r"(?i)^(label|target|class|y|(is_)?(anomaly|outlier|fraud))$")
LABEL_WARNING = "named like a label, and modelled"
FREE_TEXT_WORDS = 3.0
MIN_IMAGE_SIDE = 8
MIN_ROWS = 10


def infer_schema(
    statistics: Mapping[str, ColumnStatistics],
    *,
    overrides: Mapping[str, str],
    label: str | None,
    with_shapes: bool = True,
    folder_columns: Collection[str] = (),
) -> Schema:
    """The schema of a data set: a role for every column, those in `overrides` and the label as named.

    Numbers get the density that their shape suggests, or `with_shapes` False a Gaussian. What folders name
    (`folder_columns`) is left out unless a role is named: most often it is the date of the files, which new rows never
    share with those of training.

    Raises DataError when there are too few rows or nothing is left to model, SettingError when a named column does not
    exist, a role is unknown, or a column cannot play the role it is given.
    """
    num_rows = max((column.num_rows for column in statistics.values()), default=0)
    for name in [*overrides, *([label] if label is not None else [])]:
        if name not in statistics:
            raise SettingError(f"no column is named {name!r}; there are {listed(statistics)}")
    if num_rows < MIN_ROWS:
        raise DataError(f"the data set has {num_rows} rows; training needs at least {MIN_ROWS}")
    columns = tuple(
        _column(
            column,
            Role.LABEL.value if name == label else overrides.get(name),
            by_label=name == label,
            by_folder=name in folder_columns,
            with_shapes=with_shapes,
        )
        for name, column in statistics.items()
    )
    schema = Schema(columns=columns, num_rows=num_rows)
    if not schema.modelled:
        reasons = "; ".join(f"{column.name!r}: {column.reason}" for column in columns[:8])
        raise DataError(f"no column is left to model ({reasons}); name one with --columns name:role")
    return schema


def parse_overrides(text: str) -> dict[str, str]:
    """`name:role,name:role` from the command line.

    >>> parse_overrides("age:numeric,a:b:key")
    {'age': 'numeric', 'a:b': 'key'}
    """
    pairs = {}
    for entry in filter(None, text.split(",")):
        name, colon, role = entry.rpartition(":")
        if not colon:
            raise SettingError(f"--columns {entry}: write name:role, for example age:numeric")
        pairs[name] = role
    return pairs


def _column(
    statistics: ColumnStatistics, override: str | None, *, by_label: bool, by_folder: bool, with_shapes: bool
) -> Column:
    if override is not None:
        if override not in list(Role):
            raise SettingError(
                f"column {statistics.name!r}: {override!r} is no role; there are "
                f"{listed([role.value for role in Role])}"
            )
        role, reason = Role(override), "named as the label" if by_label else "named by --columns"
    elif by_folder:
        role, reason = Role.IGNORED, f"named by the folders; --columns {statistics.name}:category has it modelled"
    else:
        role, reason = _suggest(statistics)
    arrow_type = str(statistics.arrow_type)
    if role is Role.TIMESTAMP and statistics.family == "text":
        statistics = statistics.as_timestamps()
    if role is Role.NUMERIC and statistics.family == "list":
        statistics = statistics.as_lengths()
    describe = numeric_facts if with_shapes else plain_facts
    facts = _facts(statistics, role, describe)
    if role in (Role.NUMERIC, Role.TIMESTAMP):
        reason = f"{reason}; {describe(statistics)[1]}"
    if isinstance(facts, CategoryFacts) and unlisted_text(facts):
        reason = f"{reason}; {unlisted_text(facts)}"
    if facts is not None and LABEL_NAME.match(statistics.name):
        reason = f"{reason}; {LABEL_WARNING}, --label {statistics.name} keeps it out"
    return Column(
        name=statistics.name,
        role=role,
        arrow_type=arrow_type,
        reason=reason,
        num_nulls=statistics.num_nulls,
        facts=facts,
    )


def _suggest(column: ColumnStatistics) -> tuple[Role, str]:
    num_present = column.num_rows - column.num_nulls
    if not num_present:
        return Role.IGNORED, "every value is null; fill it or leave it out"
    if column.family in ("integer", "floating"):
        return _suggest_number(column)
    if column.family in TEMPORAL_FAMILIES:
        return _suggest_time(column)
    if column.family == "text":
        return _suggest_text(column)
    if column.family == "boolean":
        if len(column.levels) == 1:
            return Role.CATEGORY, f"always {next(iter(column.levels))!r}: kept as a check"
        return Role.BOOLEAN, "true or false"
    if column.family == "list":
        return _suggest_list(column)
    if column.family == "encoded":
        return suggest_encoded(column)
    return Role.IGNORED, f"type {column.arrow_type} is not read yet; turn it into numbers or text to use it"


def _suggest_number(column: ColumnStatistics) -> tuple[Role, str]:
    if len(column.levels) == 1 and not column.overflowed:
        return Role.CATEGORY, f"always {next(iter(column.levels))}: kept as a check"
    if KEY_NAME.match(column.name) and column.moments.are_whole and column.distinct_share > 0.5:
        return Role.KEY, "named like an identifier, whole and mostly distinct"
    span = column.moments.maximum - column.moments.minimum
    if column.family == "integer" and column.distinct_share >= KEY_SHARE and span < 2 * column.num_rows:
        return Role.KEY, "counts the rows: whole, distinct and without large gaps"
    if _are_codes(column):
        return Role.CATEGORY, f"{len(column.levels)} distinct whole numbers, taken as codes"
    noun = "whole numbers" if column.moments.are_whole else "numbers"
    infinite = f", {column.num_infinite} infinite read as null" if column.num_infinite else ""
    return Role.NUMERIC, f"{noun} from {column.moments.minimum:g} to {column.moments.maximum:g}{infinite}"


def _suggest_time(column: ColumnStatistics) -> tuple[Role, str]:
    low, high = column.moments.minimum, column.moments.maximum
    if column.family == "timestamp":
        first, last = (np.datetime_as_string(np.datetime64(math.floor(edge), "s")) for edge in (low, high))
        return Role.TIMESTAMP, f"from {first} to {last} UTC, with day, week and year for the encoder"
    return (
        Role.NUMERIC,
        f"{'durations' if column.family == 'duration' else 'times of day'} in seconds, {low:g} to {high:g}",
    )


def _are_codes(column: ColumnStatistics) -> bool:
    few = len(column.levels) <= max(2, min(MAX_CODES, column.num_rows // 100)) and not column.overflowed
    return few and column.moments.are_whole and column.moments.minimum >= 0


def _suggest_text(column: ColumnStatistics) -> tuple[Role, str]:
    num_levels = len(column.levels)
    if num_levels == 1:
        return Role.CATEGORY, f"always {next(iter(column.levels))!r}: kept as a check"
    if column.are_dates:
        role, reason = _suggest_time(column.as_timestamps())
        num_others = column.num_rows - column.num_nulls - column.dates.count
        others = f", {num_others:,} that are no dates read as null" if num_others else ""
        return role, f"text that holds dates{others}; {reason}"
    if column.distinct_share >= KEY_SHARE and column.num_rows > MIN_ROWS:
        return Role.KEY, "every value is distinct"
    if KEY_NAME.match(column.name) and column.distinct_share > 0.5:
        return Role.KEY, "named like an identifier, and mostly distinct"
    if not has_many_levels(column):
        return Role.CATEGORY, f"{num_levels} distinct values"
    if column.mean_words >= FREE_TEXT_WORDS:
        return (
            Role.IGNORED,
            f"free text, {column.mean_words:.0f} words a value; embed it into a list of floats to use it",
        )
    return suggest_many(column)


def _suggest_list(column: ColumnStatistics) -> tuple[Role, str]:
    if column.list_sizes & {-1, 0} or len(column.list_sizes) != 1:
        if column.lengths is not None and len(column.lengths.levels) > 1:
            low, high = column.lengths.moments.minimum, column.lengths.moments.maximum
            return Role.NUMERIC, (
                f"lists of {low:g} to {high:g} values, of which the number is modelled and no more; embed them into "
                "lists of one length to use them whole"
            )
        return Role.IGNORED, "lists with nulls, of several lengths or not of numbers; give every row the same length"
    (size,) = column.list_sizes
    if _is_uint8(column) and not _is_binary(column):
        shape = _image_shape(column, size)
        if shape is not None:
            height, width, channels = shape
            source = "stated in the metadata" if _stated_shape(column, size) else "guessed from the length"
            return Role.IMAGE, f"{height} x {width} x {channels} pixels of 0 to 255, shape {source}"
    kind = "zeros and ones" if _is_binary(column) else "numbers"
    return Role.VECTOR, f"{size} {kind} a row"


def _facts(
    column: ColumnStatistics, role: Role, describe: Callable[[ColumnStatistics], tuple[NumericFacts, str]]
) -> Facts | None:
    """The facts of a column in a role; SettingError when its values cannot play it."""
    moments = column.moments
    if role is Role.TIMESTAMP:
        _require(column, role, column.family == "timestamp" and moments.count > 0, "dates or timestamps")
        return describe(column)[0]
    if role is Role.NUMERIC:
        fits = column.family in ("integer", "floating", "duration", "time") and moments.count > 0
        _require(column, role, fits, "finite numbers")
        return describe(column)[0]
    if role is Role.CATEGORY:
        fits = column.family in ("integer", "floating", "text", "boolean") and len(column.levels) > 0
        _require(column, role, fits, "text, numbers or true and false")
        return category_facts(column)
    if role is Role.BOOLEAN:
        _require(column, role, column.family == "boolean" and len(column.levels) > 0, "true and false")
        return BooleanFacts(share_true=column.levels["true"] / column.levels.total())
    if role is Role.IMAGE and column.family == "encoded":
        return encoded_facts(column)
    if role in (Role.VECTOR, Role.IMAGE):
        fits = column.family == "list" and len(column.list_sizes) == 1 and min(column.list_sizes) > 0
        _require(column, role, fits, "lists of numbers, all of one length and without nulls")
        return _vector_facts(column) if role is Role.VECTOR else _image_facts(column)
    return None


def _vector_facts(column: ColumnStatistics) -> VectorFacts:
    if column.num_infinite:
        raise DataError(
            f"column {column.name!r} has {column.num_infinite} elements that are NaN or infinite; "
            f"fill them, drop those rows, or leave the column out with --columns {column.name}:ignored"
        )
    (size,) = column.list_sizes
    return VectorFacts(
        size=size,
        element="uint8" if _is_uint8(column) else "float32",
        is_binary=_is_binary(column),
        mean=column.moments.mean,
        stddev=column.moments.stddev,
    )


def _image_facts(column: ColumnStatistics) -> ImageFacts:
    (size,) = column.list_sizes
    shape = _image_shape(column, size)
    fits = column.moments.are_whole and column.moments.minimum >= 0 and column.moments.maximum <= 255
    _require(column, Role.IMAGE, fits, "whole numbers from 0 to 255")
    _require(column, Role.IMAGE, shape is not None, "a square, or field metadata shape = 'height,width[,channels]'")
    assert shape is not None
    return ImageFacts(
        height=shape[0],
        width=shape[1],
        channels=shape[2],
        mean=column.moments.mean,
        stddev=column.moments.stddev,
    )


def _image_shape(column: ColumnStatistics, size: int) -> tuple[int, int, int] | None:
    stated = _stated_shape(column, size)
    if stated is not None:
        return stated
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if side >= MIN_IMAGE_SIDE and side * side * channels == size:
            return side, side, channels
    return None


def _stated_shape(column: ColumnStatistics, size: int) -> tuple[int, int, int] | None:
    """The shape in the metadata, when it fits the number of pixels."""
    stated = [int(number) for number in re.findall(r"\d+", column.metadata.get("shape", ""))]
    if len(stated) in (2, 3) and math.prod(stated) == size:
        return stated[0], stated[1], stated[2] if len(stated) == 3 else 1
    return None


def _is_binary(column: ColumnStatistics) -> bool:
    return column.moments.are_whole and column.moments.minimum >= 0 and column.moments.maximum <= 1


def _is_uint8(column: ColumnStatistics) -> bool:
    return str(column.arrow_type.value_type) == "uint8"


def _require(column: ColumnStatistics, role: Role, fits: bool, needs: str) -> None:
    if not fits:
        raise SettingError(
            f"column {column.name!r} ({column.arrow_type}) cannot be {role}: that needs {needs}; "
            f"leave it to the default or name it ignored"
        )
