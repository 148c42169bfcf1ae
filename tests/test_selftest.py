"""The self test: a sound bundle passes, altered numbers fail, and only rounding at an edge is forgiven."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parvae.bundle import GRAPHS, Bundle, bundle_bytes, read_bundle
from parvae.schema import NULL_TEXT
from parvae.selftest import Check, compare, describe, read_golden, replay, summarise, write_golden

Golden = dict[str, dict[str, dict[str, NDArray[Any]]]]


@pytest.fixture(params=["digits_bundle", "mixed_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    path: Path = request.getfixturevalue(request.param)
    return read_bundle(path)


def with_golden(bundle: Bundle, golden: Golden) -> Bundle:
    """The same bundle with other golden rows, its hashes in order."""
    members = {**bundle.members, "golden.npz": write_golden(golden)}
    return read_bundle(bundle_bytes(bundle.manifest, members))


def outputs_of(bundle: Bundle) -> list[tuple[str, str]]:
    golden = read_golden(bundle.members["golden.npz"])
    return [(graph, name) for graph in GRAPHS for name in golden[graph]["out"]]


def test_replay_passes_on_a_sound_bundle(bundle: Bundle) -> None:
    checks = replay(bundle)
    assert [check for check in checks if not check.passed] == []
    assert [(check.graph, check.output) for check in checks] == outputs_of(bundle)
    assert {check.graph for check in checks} == set(GRAPHS)


def test_replay_passes_with_more_threads(bundle: Bundle) -> None:
    assert all(check.passed for check in replay(bundle, threads=2))


def test_golden_rows_that_are_written_again_still_pass(bundle: Bundle) -> None:
    again = with_golden(bundle, read_golden(bundle.members["golden.npz"]))
    assert all(check.passed for check in replay(again))


def test_every_output_that_is_altered_fails_and_is_named(bundle: Bundle) -> None:
    for graph, name in outputs_of(bundle):
        golden = read_golden(bundle.members["golden.npz"])
        values = golden[graph]["out"][name]
        if values.dtype == object:
            golden[graph]["out"][name] = np.full(values.shape, "(nothing like it)", dtype=object)
        elif values.dtype.kind == "f":
            # Half a unit: it cannot pass for two whole numbers on an edge.
            golden[graph]["out"][name] = values + np.maximum(1, np.nanmax(np.abs(values), initial=0)).astype(
                values.dtype
            ) * values.dtype.type(0.0137)
        else:
            golden[graph]["out"][name] = values + values.dtype.type(1)
        checks = replay(with_golden(bundle, golden))
        assert [(check.graph, check.output) for check in checks if not check.passed] == [(graph, name)]
        summary = summarise(checks)
        assert summary["passed"] is False
        assert summary["failed"] == f"{graph}/{name}"
        assert summary["largest_error_in"] == f"{graph}/{name}"


def test_altered_golden_inputs_fail(bundle: Bundle) -> None:
    golden = read_golden(bundle.members["golden.npz"])
    golden["decode"]["in"]["z"] = golden["decode"]["in"]["z"] + np.float32(1.0)
    failed = {check.graph for check in replay(with_golden(bundle, golden)) if not check.passed}
    assert failed == {"decode"}


def test_a_summary_of_a_sound_bundle_names_the_worst_output(bundle: Bundle) -> None:
    checks = replay(bundle)
    summary = summarise(checks)
    assert summary["passed"] is True
    assert summary["outputs_compared"] == len(checks)
    assert summary["largest_error"] == max(check.error for check in checks)
    assert "failed" not in summary


def test_a_failed_output_is_worse_than_a_larger_error_that_passed() -> None:
    passed = Check(graph="decode", output="numeric", error=5.0, limit=9.0, passed=True)
    failed = Check(graph="encode", output="mean", error=1.0, limit=0.1, passed=False)
    assert summarise([passed, failed])["largest_error_in"] == "encode/mean"


def test_a_bundle_describes_itself(bundle: Bundle) -> None:
    found = describe(bundle)
    assert found["model_id"] == bundle.manifest["model_id"]
    assert found["latent_size"] == bundle.manifest["latent_size"]
    assert found["holds_real_rows"] is True
    assert "onnxruntime" in str(found["versions"])


# compare


def numbers(*values: float) -> NDArray[Any]:
    return np.array(values, dtype=np.float64)[:, None]


def many(value: float, first: float | None = None) -> NDArray[Any]:
    """A thousand times one value, the first one replaced."""
    values = np.full((1_000, 1), value)
    values[0] = value if first is None else first
    return values


def test_equal_numbers_pass_with_error_zero() -> None:
    check = compare("decode", "numeric", numbers(1.5, math.nan, -3.0), numbers(1.5, math.nan, -3.0))
    assert (check.passed, check.error) == (True, 0.0)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (3,), (0, 1)])
def test_another_shape_fails(shape: tuple[int, ...]) -> None:
    check = compare("decode", "numeric", np.zeros(shape), np.zeros((3, 1)))
    assert (check.passed, check.error) == (False, math.inf)


def test_empty_outputs_pass_when_their_shapes_agree() -> None:
    assert compare("decode", "numeric", np.zeros((0, 2)), np.zeros((0, 2))).passed
    assert not compare("decode", "numeric", np.zeros((0, 3)), np.zeros((0, 2))).passed


def test_a_large_error_fails() -> None:
    check = compare("decode", "numeric", numbers(1.5, 2.6), numbers(1.5, 2.5))
    assert not check.passed
    assert check.error > check.limit


def test_a_difference_of_rounding_passes() -> None:
    wanted = np.linspace(-5, 5, 100)[:, None]
    assert compare("decode", "numeric", wanted * (1 + 5e-5), wanted).passed


def test_the_tolerance_follows_the_unit_of_the_column() -> None:
    wanted = np.array([[0.001, 0.001], [1e6, 1.0]])
    first, second = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert compare("decode", "numeric", wanted + first, wanted).passed, "1 in a column of millions is rounding"
    assert not compare("decode", "numeric", wanted + second, wanted).passed


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_number_fails(value: float) -> None:
    assert not compare("decode", "numeric", many(1.0, value), many(1.0)).passed


def test_equal_infinite_numbers_pass_without_a_warning() -> None:
    assert compare("decode", "numeric", numbers(math.inf, 1.0), numbers(math.inf, 1.0)).passed


def test_one_null_on_an_edge_passes_and_two_fail() -> None:
    wanted = many(0.5)
    assert compare("decode", "numeric", many(0.5, math.nan), wanted).passed
    found = many(0.5, math.nan)
    found[1] = math.nan
    assert not compare("decode", "numeric", found, wanted).passed


def test_wrong_nulls_fail() -> None:
    assert not compare("decode", "numeric", many(math.nan), many(1.0)).passed
    assert not compare("decode", "numeric", many(1.0), many(math.nan)).passed


def test_one_whole_number_on_an_edge_passes() -> None:
    check = compare("decode", "numeric", many(3.0, 4.0), many(3.0))
    assert (check.passed, check.error) == (True, 0.0)


def test_two_whole_numbers_on_an_edge_fail() -> None:
    found = many(3.0, 4.0)
    found[1] = 2.0
    assert not compare("decode", "numeric", found, many(3.0)).passed


def test_a_whole_number_that_is_off_by_two_fails() -> None:
    assert not compare("decode", "numeric", many(3.0, 5.0), many(3.0)).passed


@pytest.mark.parametrize("output", ["score", "contributions"])
def test_scores_have_no_edges(output: str) -> None:
    assert compare("score", output, many(3.0, 3.0005), many(3.0)).passed
    assert not compare("score", output, many(3.0, 4.0), many(3.0)).passed
    assert not compare("score", output, many(3.0, 3.01), many(3.0)).passed


@pytest.mark.parametrize("output", ["score", "contributions"])
def test_a_score_that_is_no_number_fails(output: str) -> None:
    assert not compare("score", output, many(math.nan), many(3.0)).passed
    assert not compare("score", output, many(3.0, math.nan), many(3.0)).passed


def test_a_code_that_is_no_number_fails() -> None:
    assert not compare("encode", "mean", many(0.5, math.nan), many(0.5)).passed


def test_one_level_on_an_edge_passes_and_two_fail() -> None:
    wanted = np.full((1_000, 1), "a", dtype=object)
    found = wanted.copy()
    found[0] = NULL_TEXT
    check = compare("decode", "category", found, wanted)
    assert (check.passed, check.error) == (True, 1e-3)
    found[1] = "b"
    assert not compare("decode", "category", found, wanted).passed


def test_one_pixel_on_an_edge_passes_and_two_fail() -> None:
    wanted = np.full((10, 10, 10, 1), 7, np.uint8)
    found = wanted.copy()
    found[0, 0, 0] = 8
    assert compare("decode", "image.x", found, wanted).passed
    found[1, 0, 0] = 6
    assert not compare("decode", "image.x", found, wanted).passed


# Golden rows as a file


def test_golden_rows_read_back() -> None:
    rng = np.random.default_rng(0)
    texts = np.array([["Zürich", NULL_TEXT], ["数字 🙂", ""], ["a/b", "\ufffd"]], dtype=object)
    golden: Golden = {
        graph: {
            "in": {"numeric": np.array([[1.5, math.nan], [math.inf, -1e300]]), "category": texts},
            "out": {
                "mean": rng.normal(size=(2, 3)).astype(np.float32),
                "image.a/b": rng.integers(0, 256, (2, 2, 2, 1), dtype=np.uint8),
                "category": texts,
            },
        }
        for graph in GRAPHS
    }
    found = read_golden(write_golden(golden))
    assert list(found) == list(GRAPHS)
    for graph, sides in golden.items():
        for side, named in sides.items():
            assert list(found[graph][side]) == list(named)
            for name, array in named.items():
                assert found[graph][side][name].dtype == array.dtype
                np.testing.assert_array_equal(found[graph][side][name], array)


def test_golden_rows_hold_no_pickle() -> None:
    golden: Golden = {graph: {"in": {"x": np.array([["ä"]], dtype=object)}, "out": {}} for graph in GRAPHS}
    assert read_golden(write_golden(golden))["encode"]["in"]["x"].tolist() == [["ä"]]  # allow_pickle is off


def test_the_tolerance_of_a_column_follows_all_its_rows() -> None:
    found, wanted = np.array([[0.5 + 3e-5]]), np.array([[0.5]])
    assert not compare("sample", "numeric", found + 1e-4, wanted).passed
    assert compare("sample", "numeric", found + 1e-4, wanted, like=np.array([[0.5], [900.0]])).passed
    assert not compare("sample", "numeric", found + 1.0, wanted, like=np.array([[0.5], [900.0]])).passed
