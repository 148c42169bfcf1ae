"""The columns of a data set: what role each one plays, and the facts the model needs about it.

The schema is written once, by training, and travels as JSON in the checkpoint, in the bundle and in every graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeVar

from parvae.errors import BundleError, DataError, listed

NULL_TEXT = "\u2400"
"""Stands for null in the string input of the graphs (the printable symbol for null: tensors of strings have none)."""

NULL_CODE, UNSEEN_CODE, FIRST_LEVEL_CODE = 0, 1, 2
"""Codes of a category column inside the network; level i has code i + FIRST_LEVEL_CODE."""


class Role(StrEnum):
    """What a column is to the model."""

    NUMERIC = "numeric"
    CATEGORY = "category"
    BOOLEAN = "boolean"
    VECTOR = "vector"
    IMAGE = "image"
    TIMESTAMP = "timestamp"
    KEY = "key"
    LABEL = "label"
    IGNORED = "ignored"


@dataclass(frozen=True, kw_only=True)
class NumericFacts:
    """Statistics over the rows that are neither null nor infinite, in data units, and the density they suggest."""

    mean: float
    """Mean of the values that are no atoms, after `transform`; and so is stddev."""
    stddev: float
    minimum: float
    maximum: float
    resolution: float
    """Smallest step between distinct values; 0 when the column is continuous."""
    density: str = "gaussian"
    """gaussian, student (heavy tails), logistic_mixture (several modes, or a grid) or negative_binomial (counts)."""
    transform: str = "none"
    """none, or log1p: sign(x) log(1 + |x|) before everything else."""
    atoms: tuple[float, ...] = ()
    """Values that take a share of the rows by themselves, such as a zero: each has a probability of its own."""
    step: float = 0.0
    """All values are multiples of it (from the minimum on); 0 when there is no such step."""


@dataclass(frozen=True, kw_only=True)
class CategoryFacts:
    """Levels in order of falling frequency, as canonical text.

    Where there are `buckets`, the last levels each stand for all values that are not listed and whose hash (MurmurHash3
    of the text, seed 0, modulo `num_buckets`) is that of their bucket; the level names the most frequent of them.
    """

    levels: tuple[str, ...]
    num_unlisted: int = 0
    """Rows whose value is too rare to be listed; the model reads them as unseen."""
    num_buckets: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def own_levels(self) -> tuple[str, ...]:
        """The levels that stand for themselves alone."""
        return self.levels[: len(self.levels) - len(self.buckets)]

    @property
    def can_be_unseen(self) -> bool:
        """Whether there are values that no level stands for."""
        return not self.buckets or len(self.buckets) < self.num_buckets


@dataclass(frozen=True, kw_only=True)
class BooleanFacts:
    """Share of true among the rows that are not null."""

    share_true: float


@dataclass(frozen=True, kw_only=True)
class VectorFacts:
    """A list of `size` numbers a row; mean and stddev are taken over all elements together."""

    size: int
    element: str
    """Element type the graphs take: "float32" or "uint8"."""
    is_binary: bool
    mean: float
    stddev: float


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Pixels in rows, channels last, uint8; mean and stddev are taken over all of them."""

    height: int
    width: int
    channels: int
    mean: float
    stddev: float
    resizes: bool = False
    """Whether encoded images of another size are resized to this one, as in training; otherwise they are an error."""


Facts = NumericFacts | CategoryFacts | BooleanFacts | VectorFacts | ImageFacts
FactsKind = TypeVar("FactsKind", NumericFacts, CategoryFacts, BooleanFacts, VectorFacts, ImageFacts)

FACTS: Mapping[Role, type[Facts]] = {
    Role.NUMERIC: NumericFacts,
    Role.CATEGORY: CategoryFacts,
    Role.BOOLEAN: BooleanFacts,
    Role.VECTOR: VectorFacts,
    Role.IMAGE: ImageFacts,
    Role.TIMESTAMP: NumericFacts,
}
"""Roles that are modelled, and the facts that each one needs."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the data set."""

    name: str
    role: Role
    arrow_type: str
    """The Arrow type as pyarrow prints it, e.g. "int64" or "fixed_size_list<element: uint8>[784]"."""
    reason: str
    """Why the column has this role, in words."""
    num_nulls: int = 0
    facts: Facts | None = None

    def __post_init__(self) -> None:
        expected = FACTS.get(self.role)
        if (type(self.facts) if self.facts is not None else None) is not expected:
            raise DataError(f"column {self.name!r} has role {self.role} and facts {self.facts!r}; it needs {expected}")

    @property
    def is_modelled(self) -> bool:
        """Whether the column is part of the model."""
        return self.role in FACTS

    @property
    def family(self) -> str:
        """The family of the Arrow type; a column may change its type within one."""
        return type_family(self.arrow_type)

    @property
    def holds_lengths(self) -> bool:
        """Whether the number of the column is that of the values in a list."""
        return self.role is Role.NUMERIC and self.family == "list"

    def facts_as(self, kind: type[FactsKind]) -> FactsKind:
        """The facts, known to be of one kind."""
        assert isinstance(self.facts, kind), f"{self.name}: {self.facts!r} is no {kind.__name__}"
        return self.facts


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input tensor of the graphs: a block of columns of one role."""

    name: str
    role: Role
    dtype: str
    """numpy name of the element type; "object" stands for strings."""
    row_shape: tuple[int, ...]
    columns: tuple[Column, ...]


_PACKED_DTYPES: Mapping[Role, str] = {
    Role.NUMERIC: "float64",
    Role.TIMESTAMP: "float64",
    Role.BOOLEAN: "float32",
    Role.CATEGORY: "object",
}
"""Roles whose columns share one input tensor. Dates and timestamps are seconds since 1970 UTC, durations seconds."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All columns of a data set, in file order, and the number of rows they were measured on."""

    columns: tuple[Column, ...]
    num_rows: int

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @property
    def modelled(self) -> tuple[Column, ...]:
        """The columns that the model covers, in block order (the order of contributions)."""
        return tuple(column for block in self.inputs for column in block.columns)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The input tensors of the graphs: scalars packed by role, then one tensor a vector column, then the images."""
        blocks: list[Input] = []
        for role, dtype in _PACKED_DTYPES.items():
            columns = tuple(column for column in self.columns if column.role is role)
            if columns:
                blocks.append(
                    Input(name=role.value, role=role, dtype=dtype, row_shape=(len(columns),), columns=columns)
                )
        for role in (Role.VECTOR, Role.IMAGE):
            for column in self.columns:
                if column.role is role:
                    dtype, shape = _element(column)
                    name = f"{role}.{column.name}"
                    blocks.append(Input(name=name, role=role, dtype=dtype, row_shape=shape, columns=(column,)))
        return tuple(blocks)

    def to_json(self) -> dict[str, Any]:
        """The schema as plain JSON values."""
        columns = []
        for column in self.columns:
            entry = dataclasses.asdict(column)
            entry["role"] = column.role.value
            columns.append({key: value for key, value in entry.items() if value is not None})
        return {"num_rows": self.num_rows, "columns": columns}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The schema that `to_json` wrote.

        Raises BundleError when a role or a fact is missing or unknown.
        """
        try:
            columns = tuple(_column_from_json(entry) for entry in document["columns"])
            return cls(columns=columns, num_rows=int(document["num_rows"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the schema cannot be read ({error}); write the bundle again with this version"
            ) from error


def _element(column: Column) -> tuple[str, tuple[int, ...]]:
    """Element type and shape of one row of a vector or image column."""
    if isinstance(column.facts, VectorFacts):
        return column.facts.element, (column.facts.size,)
    image = column.facts_as(ImageFacts)
    return "uint8", (image.height, image.width, image.channels)


def _column_from_json(entry: Mapping[str, Any]) -> Column:
    fields = dict(entry)
    role = Role(fields.pop("role"))
    facts = fields.pop("facts", None)
    if facts is not None:
        facts = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        facts = FACTS[role](**facts)
    return Column(role=role, facts=facts, **fields)


def type_family(arrow_type: str) -> str:
    """The family of an Arrow type: integer, floating, text, boolean, timestamp, duration, time, list, encoded or other.

    >>> type_family("dictionary<values=string, indices=int32, ordered=0>")
    'text'
    """
    if arrow_type.startswith("dictionary<values="):
        arrow_type = arrow_type.removeprefix("dictionary<values=").split(",")[0]
    for family, prefixes in _FAMILIES.items():
        if arrow_type.startswith(prefixes):
            return family
    return "other"


_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "integer": ("int", "uint"),
    "floating": ("halffloat", "float", "double", "decimal"),
    "text": ("string", "large_string", "string_view"),
    "boolean": ("bool",),
    "timestamp": ("timestamp", "date32", "date64"),
    "duration": ("duration",),
    "time": ("time32", "time64"),
    "list": ("list", "large_list", "fixed_size_list", "extension<arrow.fixed_shape_tensor"),
    "encoded": (
        *("binary", "large_binary", "struct<bytes: binary", "struct<bytes: large_binary"),
        *("struct<path: string, bytes: binary", "struct<path: string, bytes: large_binary"),
    ),
}

_FITTING_FAMILIES: Mapping[Role, frozenset[str]] = {
    Role.NUMERIC: frozenset({"integer", "floating"}),
    Role.TIMESTAMP: frozenset({"timestamp"}),
    Role.BOOLEAN: frozenset({"boolean"}),
    Role.VECTOR: frozenset({"list"}),
    Role.IMAGE: frozenset({"list", "encoded"}),
}


def check_family(column: Column, family: str, found: str) -> None:
    """Raise DataError when rows bring `column` as a type (`found`, of `family`) that it cannot be read from."""
    if column.role is Role.CATEGORY:
        # pandas turns an integer column with nulls into floats: 3.0 and 3 are the same level.
        numbers = frozenset({"integer", "floating"})
        allowed = numbers if column.family in numbers else frozenset({column.family})
    elif column.role is Role.NUMERIC and column.family in ("duration", "time", "list"):
        allowed = frozenset({column.family})
    else:
        # A timestamp that was text in training may come as text or not.
        allowed = _FITTING_FAMILIES[column.role] | ({"text"} & {column.family})
    if family not in allowed:
        raise DataError(
            f"column {column.name!r} is {found}, but the model was trained on {column.arrow_type} "
            f"(role {column.role}); cast it to {column.arrow_type}"
        )


def canonical_text(value: Any) -> str:
    """One spelling for a category, whatever type carries it: 3 and 3.0 are "3", True is "true", null is NULL_TEXT.

    Infinities are read as null, as in numeric columns.
    """
    if is_null(value):
        return NULL_TEXT
    if hasattr(value, "dtype"):  # a numpy scalar
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isinf(value):
            return NULL_TEXT
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def is_null(value: object) -> bool:
    """Whether a value stands for null: None, NaN, or a missing-value object that cannot be compared."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA
        return True


def require_columns(schema: Schema, names: tuple[str, ...]) -> None:
    """Raise DataError when rows with these column names lack a modelled column or bring one twice."""
    missing = [column for column in schema.modelled if column.name not in names]
    if missing:
        wanted = ", ".join(f"{column.name!r} ({column.arrow_type})" for column in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise DataError(
            f"the rows lack {wanted}{more}, which the model needs; they have {listed(names)}; "
            "add the column (null where unknown) or rename the one that holds it"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"the rows have column {listed(twice)} more than once; rename or drop the copies")
