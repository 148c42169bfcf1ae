"""The schema: JSON and back, spelling of categories, families of types, order of tensors, and what errors say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parvae import BundleError, Column, DataError, Role, Schema
from parvae.schema import (
    NULL_TEXT,
    BooleanFacts,
    CategoryFacts,
    Facts,
    ImageFacts,
    NumericFacts,
    VectorFacts,
    canonical_text,
    check_family,
    require_columns,
    type_family,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.integers(1, 2_000)

FACTS_STRATEGIES: dict[Role, st.SearchStrategy[Facts | None]] = {
    Role.NUMERIC: st.builds(
        NumericFacts, mean=finite, stddev=finite, minimum=finite, maximum=finite, resolution=finite
    ),
    Role.TIMESTAMP: st.builds(
        NumericFacts, mean=finite, stddev=finite, minimum=finite, maximum=finite, resolution=finite
    ),
    Role.CATEGORY: st.builds(
        CategoryFacts, levels=st.lists(st.text(), unique=True).map(tuple), num_unlisted=st.integers(0, 10**9)
    ),
    Role.BOOLEAN: st.builds(BooleanFacts, share_true=st.floats(0, 1)),
    Role.VECTOR: st.builds(
        VectorFacts,
        size=sizes,
        element=st.sampled_from(["float32", "uint8"]),
        is_binary=st.booleans(),
        mean=finite,
        stddev=finite,
    ),
    Role.IMAGE: st.builds(
        ImageFacts, height=sizes, width=sizes, channels=st.sampled_from([1, 3]), mean=finite, stddev=finite
    ),
    Role.KEY: st.none(),
    Role.LABEL: st.none(),
    Role.IGNORED: st.none(),
}


@st.composite
def columns(draw: st.DrawFn) -> Column:
    role = draw(st.sampled_from(list(Role)))
    return Column(
        name=draw(st.text()),
        role=role,
        arrow_type=draw(st.sampled_from(["int64", "double", "string", "bool", "list<element: float>"])),
        reason=draw(st.text()),
        num_nulls=draw(st.integers(0, 10**12)),
        facts=draw(FACTS_STRATEGIES[role]),
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    distinct = draw(st.lists(columns(), max_size=6, unique_by=lambda column: column.name))
    return Schema(columns=tuple(distinct), num_rows=draw(st.integers(0, 10**12)))


def numeric(name: str, arrow_type: str = "int64") -> Column:
    facts = NumericFacts(mean=1.0, stddev=2.0, minimum=0.0, maximum=3.0, resolution=1.0)
    return Column(name=name, role=Role.NUMERIC, arrow_type=arrow_type, reason="numbers", facts=facts)


def category(name: str, arrow_type: str = "string") -> Column:
    return Column(
        name=name, role=Role.CATEGORY, arrow_type=arrow_type, reason="levels", facts=CategoryFacts(levels=("a", "b"))
    )


def boolean(name: str) -> Column:
    return Column(name=name, role=Role.BOOLEAN, arrow_type="bool", reason="flag", facts=BooleanFacts(share_true=0.5))


def vector(name: str, size: int = 4) -> Column:
    facts = VectorFacts(size=size, element="float32", is_binary=False, mean=0.0, stddev=1.0)
    return Column(name=name, role=Role.VECTOR, arrow_type="list<element: float>", reason="numbers", facts=facts)


def image(name: str) -> Column:
    facts = ImageFacts(height=2, width=3, channels=1, mean=0.0, stddev=1.0)
    return Column(
        name=name, role=Role.IMAGE, arrow_type="fixed_size_list<element: uint8>[6]", reason="pixels", facts=facts
    )


def plain(name: str, role: Role) -> Column:
    return Column(name=name, role=role, arrow_type="int64", reason="not modelled")


ALL_KINDS = Schema(
    columns=(
        image("photo"),
        plain("id", Role.KEY),
        category("city"),
        vector("second"),
        numeric("age"),
        boolean("member"),
        plain("target", Role.LABEL),
        vector("first"),
        category("code", "int64"),
        numeric("income", "double"),
        plain("note", Role.IGNORED),
    ),
    num_rows=100,
)


# Drawing schemas is slow on a busy machine; that is no finding.
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(schemas())
def test_a_schema_survives_json(schema: Schema) -> None:
    text = json.dumps(schema.to_json(), ensure_ascii=False)
    assert Schema.from_json(json.loads(text)) == schema


def test_the_json_is_plain_values() -> None:
    document = ALL_KINDS.to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["num_rows"] == 100
    assert [entry["role"] for entry in document["columns"]][:3] == ["image", "key", "category"]
    assert all(type(entry["role"]) is str for entry in document["columns"])


def broken_documents() -> list[Any]:
    entry = ALL_KINDS.to_json()["columns"][4]
    return [
        None,
        {},
        {"columns": [entry]},
        {"num_rows": 1, "columns": [{**entry, "role": "nonsense"}]},
        {"num_rows": 1, "columns": [{key: value for key, value in entry.items() if key != "facts"}]},
        {"num_rows": 1, "columns": [{**entry, "facts": {**entry["facts"], "surprise": 1}}]},
        {"num_rows": 1, "columns": [{**entry, "facts": {"mean": 1.0}}]},
        {"num_rows": 1, "columns": [{**entry, "role": "key"}]},
        {"num_rows": 1, "columns": [{**entry, "surprise": 1}]},
        {"num_rows": 1, "columns": [{**entry, "facts": [1.0, 2.0]}]},
        {"num_rows": 1, "columns": ["age"]},
    ]


@pytest.mark.parametrize("document", broken_documents())
def test_a_broken_schema_is_refused_with_the_remedy(document: Any) -> None:
    with pytest.raises(BundleError, match=r"schema cannot be read .*write the bundle again"):
        Schema.from_json(document)


@pytest.mark.parametrize("role", list(Role))
def test_a_column_needs_the_facts_of_its_role(role: Role) -> None:
    wrong = CategoryFacts(levels=("a",)) if role is not Role.CATEGORY else BooleanFacts(share_true=0.5)
    with pytest.raises(DataError, match=f"column 'x' has role {role}"):
        Column(name="x", role=role, arrow_type="int64", reason="r", facts=wrong)


def test_a_schema_and_its_columns_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ALL_KINDS.num_rows = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        ALL_KINDS["age"].name = "other"  # type: ignore[misc]


def test_a_column_is_found_by_its_name() -> None:
    assert ALL_KINDS["city"].role is Role.CATEGORY
    with pytest.raises(KeyError, match="nowhere"):
        ALL_KINDS["nowhere"]


def test_inputs_are_packed_by_role_then_one_a_vector_then_the_images() -> None:
    found = [
        (block.name, block.dtype, block.row_shape, [column.name for column in block.columns])
        for block in ALL_KINDS.inputs
    ]
    assert found == [
        ("numeric", "float64", (2,), ["age", "income"]),
        ("boolean", "float32", (1,), ["member"]),
        ("category", "object", (2,), ["city", "code"]),
        ("vector.second", "float32", (4,), ["second"]),
        ("vector.first", "float32", (4,), ["first"]),
        ("image.photo", "uint8", (2, 3, 1), ["photo"]),
    ]


def test_contributions_follow_the_inputs() -> None:
    order = [column.name for column in ALL_KINDS.modelled]
    assert order == ["age", "income", "member", "city", "code", "second", "first", "photo"]


def test_roles_without_columns_make_no_input() -> None:
    schema = Schema(columns=(boolean("member"), plain("id", Role.KEY)), num_rows=1)
    assert [block.name for block in schema.inputs] == ["boolean"]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        (pa.int8(), "integer"),
        (pa.uint64(), "integer"),
        (pa.float16(), "floating"),
        (pa.float32(), "floating"),
        (pa.float64(), "floating"),
        (pa.decimal128(5, 2), "floating"),
        (pa.decimal256(50, 2), "floating"),
        (pa.string(), "text"),
        (pa.large_string(), "text"),
        (pa.string_view(), "text"),
        (pa.bool_(), "boolean"),
        (pa.list_(pa.float32()), "list"),
        (pa.large_list(pa.float32()), "list"),
        (pa.list_(pa.uint8(), 4), "list"),
        (pa.fixed_shape_tensor(pa.float32(), [2, 2]), "list"),
        (pa.dictionary(pa.int32(), pa.string()), "text"),
        (pa.dictionary(pa.uint32(), pa.large_string(), ordered=True), "text"),
        (pa.dictionary(pa.int8(), pa.int64()), "integer"),
        (pa.dictionary(pa.int8(), pa.decimal128(5, 2)), "floating"),
        (pa.timestamp("us", tz="UTC"), "timestamp"),
        (pa.date32(), "timestamp"),
        (pa.duration("s"), "duration"),
        (pa.time64("us"), "time"),
        (pa.month_day_nano_interval(), "other"),
        (pa.binary(), "encoded"),
        (pa.binary(4), "other"),
        (pa.struct({"float": pa.float32()}), "other"),
        (pa.map_(pa.string(), pa.int64()), "other"),
        (pa.null(), "other"),
    ],
)
def test_every_arrow_type_falls_into_its_family(kind: pa.DataType, family: str) -> None:
    assert type_family(str(kind)) == family


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NULL_TEXT),
        (float("nan"), NULL_TEXT),
        ("", ""),
        ("3.0", "3.0"),
        ("Zürich", "Zürich"),
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (1e300, str(int(1e300))),
        (float("inf"), NULL_TEXT),
        (-(2**63), "-9223372036854775808"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_a_category_has_one_spelling(value: object, text: str) -> None:
    assert canonical_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(3), "3"),
        (np.float64(2.5), "2.5"),
        (np.float64(3.0), "3"),
        (np.float32(3.0), "3"),
        (np.float32(2.5), "2.5"),
        (np.bool_(True), "true"),
        (np.str_("a"), "a"),
    ],
)
def test_a_numpy_scalar_is_spelt_like_the_python_value(value: object, text: str) -> None:
    assert canonical_text(value) == text


@given(st.integers(-(2**53), 2**53))
def test_a_whole_number_is_spelt_alike_as_integer_and_as_float(number: int) -> None:
    assert canonical_text(float(number)) == canonical_text(number) == str(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_spelling_of_a_float_reads_back(number: float) -> None:
    assert float(canonical_text(number)) == number


def test_missing_columns_are_named_with_their_type_and_the_remedy() -> None:
    with pytest.raises(DataError) as caught:
        require_columns(ALL_KINDS, ("id", "age", "income", "member", "code", "second", "first", "photo"))
    message = str(caught.value)
    assert "lack 'city' (string)" in message
    assert "they have 'id', 'age'" in message
    assert "add the column (null where unknown) or rename" in message


def test_a_long_list_of_missing_columns_is_cut() -> None:
    schema = Schema(columns=tuple(numeric(f"x{index}") for index in range(20)), num_rows=1)
    with pytest.raises(DataError, match=r"'x7' .*and 12 more") as caught:
        require_columns(schema, ())
    assert "'x8'" not in str(caught.value)
    assert "they have none" in str(caught.value)


def test_keys_and_labels_need_not_be_there() -> None:
    names = tuple(column.name for column in ALL_KINDS.modelled)
    require_columns(ALL_KINDS, names)
    with pytest.raises(DataError):
        require_columns(ALL_KINDS, names[1:])


def test_a_column_that_comes_twice_is_named() -> None:
    names = tuple(column.name for column in ALL_KINDS)
    with pytest.raises(DataError, match="column 'city' more than once; rename or drop"):
        require_columns(ALL_KINDS, (*names, "city"))


def test_a_retyped_column_is_named_with_both_types_and_the_remedy() -> None:
    with pytest.raises(DataError) as caught:
        check_family(numeric("age"), "text", "string")
    message = str(caught.value)
    assert "column 'age' is string" in message
    assert "trained on int64 (role numeric)" in message
    assert "cast it to int64" in message


@pytest.mark.parametrize(
    ("column", "allowed"),
    [
        (numeric("age", "int64"), {"integer", "floating"}),
        (numeric("income", "double"), {"integer", "floating"}),
        (boolean("member"), {"boolean"}),
        (category("city", "string"), {"text"}),
        (category("code", "int64"), {"integer", "floating"}),
        (category("flag", "bool"), {"boolean"}),
        (vector("embedding"), {"list"}),
        (image("photo"), {"list", "encoded"}),
    ],
)
def test_a_column_may_change_its_type_within_what_its_role_reads(column: Column, allowed: set[str]) -> None:
    for family in ("integer", "floating", "text", "boolean", "list", "encoded", "other"):
        if family in allowed:
            check_family(column, family, family)
        else:
            with pytest.raises(DataError, match=f"column '{column.name}' is {family}"):
                check_family(column, family, family)
