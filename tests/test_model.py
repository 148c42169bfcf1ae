"""The loaded model: shapes and types, chunks, and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mixed_rows import Rows, assert_same_rows, repeated, select

from parvae import VAE, DataError, SettingError
from parvae.model import LATENT_PART

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits.parquet"
MORE_THAN_ONE_CHUNK = 1_100


def test_codes_are_float32_of_latent_size(vae: VAE, rows: Rows) -> None:
    codes = vae.encode(rows)
    assert (codes.shape, codes.dtype) == ((40, vae.latent_size), np.dtype(np.float32))
    assert np.all(np.isfinite(codes))


def test_decoded_columns_have_the_types_of_the_data_set(vae: VAE, rows: Rows) -> None:
    found = vae.decode(vae.encode(rows))
    assert list(found) == [column.name for column in vae.schema if column.is_modelled]
    assert {name: (array.dtype.kind, array.shape) for name, array in found.items()} == {
        "age": ("i", (40,)),
        "income": ("f", (40,)),
        "city": ("O", (40,)),
        "code": ("O", (40,)),
        "member": ("b", (40,)),
        "embedding": ("f", (40, 4)),
    }
    assert set(found["code"].tolist()) == {7}


def test_images_are_decoded_as_pixels(digits: VAE, images: pa.Table) -> None:
    found = digits.decode(digits.encode(images.slice(0, 5)))
    assert list(found) == ["image"]
    assert (found["image"].shape, found["image"].dtype) == ((5, 8, 8, 1), np.dtype(np.uint8))


def test_codes_may_come_as_a_list(vae: VAE) -> None:
    zero = [[0.0] * vae.latent_size]
    assert_same_rows(vae.decode(zero), vae.decode(np.zeros((1, vae.latent_size))))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 1), (0,)])
def test_codes_of_another_shape_are_refused(vae: VAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="codes have shape") as caught:
        vae.decode(np.zeros(shape))
    assert f"needs (rows, {vae.latent_size})" in str(caught.value)


def test_codes_that_are_no_numbers_are_refused(vae: VAE) -> None:
    with pytest.raises(DataError, match="codes"):
        vae.decode([["a"] * vae.latent_size])


def test_reconstruction_is_encode_then_decode(vae: VAE, rows: Rows) -> None:
    again = vae.reconstruct(rows)
    assert list(again) == list(rows)
    assert_same_rows({name: again[name] for name in vae.decode(vae.encode(rows))}, vae.decode(vae.encode(rows)))
    for name in ("id", "target"):
        np.testing.assert_array_equal(again[name], rows[name])


def test_scores_have_one_number_a_row_and_one_a_part(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    assert len(scores) == 40
    assert (scores.nats.shape, scores.nats.dtype) == ((40,), np.dtype(np.float32))
    assert scores.contributions.shape == (40, len(vae.parts))
    assert (scores.p_value.shape, scores.p_value.dtype) == ((40,), np.dtype(np.float64))
    assert (scores.is_anomaly(0.5).shape, scores.is_anomaly(0.5).dtype) == ((40,), np.dtype(bool))
    assert_same_rows(scores.expected, vae.reconstruct(rows))


def test_expected_rows_are_worked_out_once(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    assert scores.expected is scores.expected


def test_contributions_sum_to_the_score_and_are_named(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    np.testing.assert_allclose(scores.contributions.sum(axis=1), scores.nats, rtol=1e-5, atol=1e-4)
    assert scores.parts == vae.parts == (*(column.name for column in vae.schema.modelled), LATENT_PART)
    assert np.all(scores.contributions[:, -1] >= 0), "a KL divergence is not negative"


def test_a_contribution_belongs_to_the_column_that_it_names(vae: VAE, rows: Rows) -> None:
    base = vae.score(rows)
    broken = {
        "age": np.full(40, 10**6),
        "income": np.full(40, 1e9),
        "city": np.full(40, "(no such place)", dtype=object),
        "code": np.full(40, 8),
        "embedding": np.full((40, 4), 1e3, np.float32),
    }
    for name, values in broken.items():
        change = vae.score({**rows, name: values}).contributions - base.contributions
        assert vae.parts[int(np.argmax(change.mean(axis=0)))] == name


@pytest.mark.parametrize("fixture", ["vae", "digits"])
def test_no_row_gives_empty_results(fixture: str, request: pytest.FixtureRequest, rows: Rows, images: pa.Table) -> None:
    model: VAE = request.getfixturevalue(fixture)
    none: Any = select(rows, slice(0)) if fixture == "vae" else images.slice(0, 0)
    assert model.encode(none).shape == (0, model.latent_size)
    scores = model.score(none)
    assert scores.contributions.shape == (0, len(model.parts))
    assert scores.nats.shape == scores.p_value.shape == scores.is_anomaly(0.5).shape == (0,)
    again = model.reconstruct(none)
    assert (len(again["age"]) if fixture == "vae" else again.num_rows) == 0
    assert all(len(array) == 0 for array in model.decode(np.zeros((0, model.latent_size))).values())
    assert all(len(array) == 0 for array in model.sample(0).values())


def test_inputs_are_left_as_they_were(vae: VAE, rows: Rows) -> None:
    before = {name: array.copy() for name, array in rows.items()}
    vae.score(rows)
    vae.reconstruct(rows)
    assert_same_rows(rows, before)


# Chunks


def test_many_mixed_rows_score_as_they_do_one_by_one(vae: VAE, rows: Rows) -> None:
    many = repeated(rows, MORE_THAN_ONE_CHUNK)
    codes, scores = vae.encode(many), vae.score(many)
    single = [select(rows, slice(index, index + 1)) for index in range(40)]
    alone_codes = np.concatenate([vae.encode(row) for row in single])
    alone_nats = np.concatenate([vae.score(row).nats for row in single])
    alone_parts = np.concatenate([vae.score(row).contributions for row in single])
    index = np.arange(MORE_THAN_ONE_CHUNK) % 40
    np.testing.assert_allclose(codes, alone_codes[index], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.nats, alone_nats[index], rtol=1e-4)
    np.testing.assert_allclose(scores.contributions, alone_parts[index], rtol=1e-4, atol=1e-4)


def test_many_images_score_as_they_do_one_by_one(digits: VAE, images: pa.Table) -> None:
    many = images.slice(0, MORE_THAN_ONE_CHUNK)
    scores, codes = digits.score(many).nats, digits.encode(many)
    for first in (0, 500, 1_023, 1_024, MORE_THAN_ONE_CHUNK - 1):
        row = images.slice(first, 1)
        np.testing.assert_allclose(scores[first], digits.score(row).nats[0], rtol=1e-4)
        np.testing.assert_allclose(codes[first], digits.encode(row)[0], rtol=1e-4, atol=1e-5)


def test_many_codes_are_decoded_as_they_are_one_by_one(vae: VAE) -> None:
    codes = np.random.default_rng(0).normal(size=(MORE_THAN_ONE_CHUNK, vae.latent_size))
    many = vae.decode(codes)
    for index in (0, 1_023, 1_024, MORE_THAN_ONE_CHUNK - 1):
        alone = vae.decode(codes[index : index + 1])
        np.testing.assert_allclose(many["embedding"][index], alone["embedding"][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(many["income"][index], alone["income"][0], rtol=1e-4)


# Samples


def test_the_same_seed_gives_the_same_rows(vae: VAE, digits: VAE) -> None:
    for model in (vae, digits):
        assert_same_rows(model.sample(30, seed=5), model.sample(30, seed=5))
    assert_same_rows(vae.sample(30), vae.sample(30, seed=0))


def test_another_seed_gives_other_rows(vae: VAE, digits: VAE) -> None:
    one, other = vae.sample(30, seed=0), vae.sample(30, seed=1)
    assert not np.any(one["embedding"] == other["embedding"])
    assert not np.array_equal(digits.sample(30, seed=0)["image"], digits.sample(30, seed=1)["image"])


def test_a_sample_of_many_rows_starts_with_the_sample_of_few(vae: VAE) -> None:
    many, few = vae.sample(MORE_THAN_ONE_CHUNK + 1_000, seed=3), vae.sample(50, seed=3)
    np.testing.assert_allclose(many["embedding"][:50], few["embedding"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many["income"][:50], few["income"], rtol=1e-4)
    assert np.mean(many["city"][:50] == few["city"]) > 0.95


def test_a_chunk_of_a_sample_equals_that_part_of_the_whole(vae: VAE) -> None:
    whole = vae.sample_noise(100, seed=3)
    parts = [vae.sample_noise(size, seed=3, first_row=first) for first, size in ((0, 30), (30, 70))]
    for name, noise in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), noise)


def test_the_noise_of_code_and_columns_is_not_shared(vae: VAE) -> None:
    noise = vae.sample_noise(200, seed=3)
    together = np.concatenate([noise["z_noise"], noise["noise"]], axis=1)
    correlation = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.max(np.abs(correlation)) < 0.5


def test_samples_hold_the_modelled_columns_inside_the_range_of_the_data(vae: VAE, mixed_table: pa.Table) -> None:
    fresh = vae.sample(500, seed=1)
    assert list(fresh) == [column.name for column in vae.schema if column.is_modelled]
    income = np.asarray(mixed_table["income"])
    assert income.min() <= fresh["income"].min() < fresh["income"].max() <= income.max()
    assert set(fresh["city"].tolist()) <= {*mixed_table["city"].to_pylist(), None}
    assert set(fresh["code"].tolist()) == {7}
    assert set(fresh["member"].tolist()) == {True, False}


def test_samples_can_be_scored(vae: VAE) -> None:
    assert np.all(np.isfinite(vae.score(vae.sample(20)).nats))


def test_pixel_noise_changes_images_and_nothing_else(vae: VAE, digits: VAE) -> None:
    expected, drawn = digits.sample(10, seed=2)["image"], digits.sample(10, seed=2, pixel_noise=True)["image"]
    assert (drawn.shape, drawn.dtype) == (expected.shape, expected.dtype)
    assert np.mean(expected != drawn) > 0.5
    assert_same_rows(vae.sample(10, seed=2), vae.sample(10, seed=2, pixel_noise=True))


@pytest.mark.parametrize("num_rows", [-1, 1.0, "3", None])
def test_a_wrong_number_of_rows_is_refused(vae: VAE, num_rows: Any) -> None:
    with pytest.raises(SettingError, match=r"num_rows is .*; it must be a whole number, 0 or more"):
        vae.sample(num_rows)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "0"])
def test_a_wrong_seed_is_refused(vae: VAE, seed: Any) -> None:
    with pytest.raises(SettingError, match="seed is"):
        vae.sample(1, seed=seed)
