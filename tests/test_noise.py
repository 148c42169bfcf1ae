"""The noise is Philox and Box-Muller: the published vectors, stored numbers, chunks, streams, and the distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from parvae import SettingError
from parvae.noise import philox4x32, standard_normal

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Counter, key and output of ten rounds, from kat_vectors of Random123 (Salmon et al. 2011)."""

GOLDEN_NORMALS = [
    (
        {"seed": 0},
        [
            [0.991137683391571, -0.9246625900268555, -0.6176089644432068, -0.48206859827041626, -0.15363822877407074],
            [1.1363673210144043, -0.6758829951286316, 1.2405917644500732, 0.2242511361837387, 1.021978735923767],
        ],
    ),
    (
        {"seed": 2**64 - 1, "stream": 3, "first_row": 2**32 - 1},  # the second row carries into the high word
        [
            [0.9886758327484131, 1.2646595239639282, 1.1654834747314453, -1.6651718616485596, 0.9734781980514526],
            [-0.6993338465690613, 0.8884033560752869, 1.192183256149292, -0.1207088828086853, 0.004878930281847715],
        ],
    ),
    (
        {"seed": 20240601, "stream": 1, "first_row": 7},
        [
            [-2.0788090229034424, 0.5855647921562195, -1.5092111825942993, -0.2820033133029938, -0.552209734916687],
            [-1.0046958923339844, 0.0692431628704071, 1.1318296194076538, -1.0467967987060547, 2.618621349334717],
        ],
    ),
]
"""From a scalar program of its own (Python integers and the math module), not from the function under test."""


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: str, output: str) -> None:
    key0, key1 = words(key)
    found = philox4x32(np.array([words(counter)], dtype=np.uint32), (key0, key1))
    assert found.dtype == np.uint32
    assert found.tolist() == [words(output)]


def test_philox_treats_every_counter_by_itself() -> None:
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint32)
    together = philox4x32(counters, (1, 2))
    apart = np.concatenate([philox4x32(counters[i : i + 1], (1, 2)) for i in range(len(counters))])
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize(("arguments", "wanted"), GOLDEN_NORMALS)
def test_normal_numbers_are_the_stored_ones(arguments: dict[str, Any], wanted: list[list[float]]) -> None:
    found = standard_normal(shape=(2, 5), **arguments)
    assert found.dtype == np.float32
    # One unit in the last place of float32: the C library may round cosine and logarithm differently.
    np.testing.assert_allclose(found, np.array(wanted, np.float32), rtol=2.4e-7, atol=0)


@pytest.mark.parametrize("width", [1, 3, 4, 9])
def test_chunks_equal_the_whole_draw(width: int) -> None:
    whole = standard_normal(5, (100, width), stream=2)
    chunks = [
        standard_normal(5, (size, width), stream=2, first_row=first) for first, size in ((0, 1), (1, 60), (61, 39))
    ]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_chunks_join_where_the_row_number_leaves_32_bits() -> None:
    first = 2**32 - 3
    whole = standard_normal(5, (6, 4), first_row=first)
    np.testing.assert_array_equal(whole[3:], standard_normal(5, (3, 4), first_row=2**32))
    assert not np.array_equal(whole[3:], standard_normal(5, (3, 4), first_row=0))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_draw_keeps_its_shape(shape: tuple[int, int]) -> None:
    assert standard_normal(0, shape).shape == shape


def test_the_same_arguments_give_the_same_bits() -> None:
    np.testing.assert_array_equal(standard_normal(9, (50, 3), stream=1), standard_normal(9, (50, 3), stream=1))


def test_a_numpy_seed_equals_a_python_seed() -> None:
    np.testing.assert_array_equal(standard_normal(np.uint64(2**63 + 1), (5, 3)), standard_normal(2**63 + 1, (5, 3)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seed": 0}, {"seed": 1}),
        ({"seed": 0}, {"seed": 2**32}),  # the high word of the seed counts
        ({"seed": 0}, {"seed": 0, "stream": 1}),
        ({"seed": 0}, {"seed": 0, "first_row": 2_000}),
    ],
)
def test_seeds_streams_and_rows_are_unrelated(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = (standard_normal(shape=(2_000, 4), **arguments).ravel().astype(np.float64) for arguments in (one, other))
    assert not np.any(a == b)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)


def test_numbers_are_standard_normal() -> None:
    draws = standard_normal(123, (50_000, 4)).astype(np.float64)
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / draws.size)
    assert abs(stats.skew(draws.ravel())) < 4 * np.sqrt(6 / draws.size)
    assert abs(stats.kurtosis(draws.ravel())) < 4 * np.sqrt(24 / draws.size)
    assert stats.kstest(draws.ravel(), stats.norm.cdf).pvalue > 0.01
    for column in draws.T:  # cosine and sine of both pairs
        assert stats.kstest(column, stats.norm.cdf).pvalue > 0.01


def test_elements_of_a_row_are_uncorrelated() -> None:
    draws = standard_normal(3, (50_000, 6)).astype(np.float64)
    off_diagonal = np.corrcoef(draws.T) - np.eye(6)
    assert np.max(np.abs(off_diagonal)) < 4.5 / np.sqrt(len(draws))


def test_all_numbers_are_finite_at_the_edges_of_the_words() -> None:
    draws = standard_normal(77, (200_000, 2))
    assert np.all(np.isfinite(draws))
    assert np.max(np.abs(draws)) < np.sqrt(2 * 33 * np.log(2))  # the smallest uniform number is 2**-33


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", None])
def test_a_bad_seed_is_refused_with_what_is_allowed(seed: Any) -> None:
    with pytest.raises(SettingError, match=r"seed is .*; it must be a whole number from 0 to 2\*\*64 - 1") as caught:
        standard_normal(seed, (1, 1))
    assert repr(seed) in str(caught.value)
