"""Blocks: raw columns in, finite features, log-densities per standard deviation, data units out."""

from __future__ import annotations

import math

import pytest
import torch
from builders import boolean, category, image, numeric, vector
from made_blocks import NUM_ROWS, block_of, normal, raw_of, zeros

from parvae.schema import NULL_CODE, UNSEEN_CODE, Column
from parvae_pipeline.blocks import ImageBlock
from parvae_pipeline.numeric_block import NumericBlock

ALL_BLOCKS: dict[str, tuple[Column, ...]] = {
    "numeric": (numeric("a", num_nulls=5), numeric("b", mean=1e9, stddev=3.0, arrow_type="int64", resolution=1.0)),
    "boolean": (boolean("a", num_nulls=5), boolean("b")),
    "category": (category("a", num_nulls=5), category("b", levels=("x",), num_unlisted=3)),
    "vector of floats": (vector(size=5, mean=2.0, stddev=0.5),),
    "vector of zeros and ones": (vector(size=5, element="uint8", is_binary=True, mean=0.3, stddev=0.46),),
    "vector of bytes": (vector(size=5, element="uint8", mean=100.0, stddev=30.0),),
    "image": (image(height=5, width=6, channels=3),),
}


@pytest.fixture(params=ALL_BLOCKS)
def columns(request: pytest.FixtureRequest) -> tuple[Column, ...]:
    return ALL_BLOCKS[request.param]


def test_shapes_are_those_that_the_block_declares(columns: tuple[Column, ...]) -> None:
    block, raw = block_of(*columns), raw_of(columns, 6)
    assert block.features(raw).shape == (6, block.num_features)
    assert block.target(raw)[0].shape == (6, block.num_values)
    assert block.log_prob(zeros(block, 6), raw).shape == (6, len(columns))
    assert block.mean(zeros(block, 6)).shape == raw.shape
    assert block.draw(zeros(block, 6), normal(6, block.num_noise)).shape == raw.shape
    assert block.initial_parameters(raw).shape == (block.num_parameters,)


def test_a_batch_of_no_rows_gives_no_rows(columns: tuple[Column, ...]) -> None:
    block, raw = block_of(*columns), raw_of(columns, 0)
    assert block.features(raw).shape == (0, block.num_features)
    assert block.log_prob(zeros(block, 0), raw).shape == (0, len(columns))
    assert block.mean(zeros(block, 0)).shape == raw.shape
    assert block.draw(zeros(block, 0), normal(0, block.num_noise)).shape == raw.shape


def test_initial_parameters_are_finite_and_better_than_zeros(columns: tuple[Column, ...]) -> None:
    block, raw = block_of(*columns), raw_of(columns, 60)
    start = block.initial_parameters(raw)
    assert bool(torch.isfinite(start).all())
    # On average over the rows that set them, the marginals cannot lose to a guess that never saw them.
    with torch.no_grad():
        fitted, blind = (
            block.log_prob(parameters.expand(60, -1), raw).sum()
            for parameters in (start[None], torch.zeros(1, block.num_parameters))
        )
    assert float(fitted) > float(blind) - 1e-3


def test_means_and_draws_come_back_as_rows_that_can_go_in_again(columns: tuple[Column, ...]) -> None:
    block = block_of(*columns)
    parameters = normal(20, block.num_parameters, seed=1)
    for rows in (block.mean(parameters), block.draw(parameters, normal(20, block.num_noise, seed=2))):
        assert rows.dtype == raw_of(columns, 1).dtype
        assert bool(torch.isfinite(block.features(rows)).all())
        assert bool(torch.isfinite(block.log_prob(parameters, rows)).all())


def test_an_observation_is_scored_alike_in_any_batch(columns: tuple[Column, ...]) -> None:
    block, raw = block_of(*columns), raw_of(columns, 8)
    parameters = normal(8, block.num_parameters)
    whole = block.log_prob(parameters, raw)
    alone = torch.cat([block.log_prob(parameters[i : i + 1], raw[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(whole, alone)


# Categories


@pytest.mark.parametrize("num_nulls", [0, 20])
def test_levels_null_and_unseen_share_all_probability(num_nulls: int) -> None:
    block = block_of(category(levels=("a", "b", "c"), num_nulls=num_nulls, num_unlisted=7))
    codes = torch.arange(5)[:, None]
    parameters = normal(1, block.num_parameters).expand(5, -1)
    assert float(block.log_prob(parameters, codes).exp().sum().detach()) == pytest.approx(1.0, abs=1e-5)


def test_an_unseen_category_costs_log_of_rows_plus_two_when_training_listed_all() -> None:
    block = block_of(category())
    nats = block.log_prob(zeros(block, 1), torch.tensor([[UNSEEN_CODE]])).item()
    present = math.log1p(-1.0 / (NUM_ROWS + 2))
    assert nats == pytest.approx(-math.log(NUM_ROWS + 2) + present, abs=1e-5)


def test_unlisted_rows_of_training_make_unseen_values_likelier() -> None:
    block = block_of(category(num_unlisted=24))
    nats = block.log_prob(zeros(block, 1), torch.tensor([[UNSEEN_CODE]])).item()
    assert nats == pytest.approx(math.log(25.0 / 102.0) + math.log1p(-1.0 / 102.0), abs=1e-5)


def test_null_and_unseen_codes_begin_as_nothing_known() -> None:
    block = block_of(category("a"), category("b", levels=("x", "y")))
    features = block.features(torch.tensor([[NULL_CODE, UNSEEN_CODE], [2, 3]]))
    assert features[0].tolist() == [0.0] * block.num_features
    assert bool((features[1] != 0.0).all())


def test_every_code_of_every_column_has_its_own_embedding() -> None:
    block = block_of(category("a"), category("b", levels=("x", "y")))
    codes = torch.tensor([[2, 2], [3, 2], [4, 2], [2, 3]])
    features = block.features(codes).detach()
    first, second = features.chunk(2, dim=1)
    distinct = torch.unique(torch.cat([first[:3], second[0:1], second[3:4]]), dim=0)
    assert len(distinct) == 5


def test_drawn_codes_are_listed_levels() -> None:
    block = block_of(category("a", levels=("x", "y", "z")), category("b", levels=("x",)))
    draws = block.draw(normal(300, 4), normal(300, 2, seed=1))
    assert sorted(draws[:, 0].unique().tolist()) == [2, 3, 4]
    assert draws[:, 1].unique().tolist() == [2]


# Vectors and images


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_broken_embedding_is_finite_and_far_less_likely(value: float) -> None:
    block = block_of(vector(size=3, mean=1.0, stddev=0.5))
    raw = torch.tensor([[1.0, value, 1.0], [1.0, 1.5, 1.0]])
    with torch.no_grad():
        broken, good = block.log_prob(zeros(block, 2), raw).flatten().tolist()
    assert bool(torch.isfinite(block.features(raw)).all())
    assert math.isfinite(broken)
    assert broken < good - 1e6


def test_a_vector_of_zeros_and_ones_does_not_take_a_broken_element_for_a_zero() -> None:
    block = block_of(vector(size=2, is_binary=True, mean=0.5, stddev=0.5))
    parameters = torch.full((2, 2), -5.0)
    broken, zero = block.log_prob(parameters, torch.tensor([[math.nan, 0.0], [0.0, 0.0]])).flatten().tolist()
    assert math.isfinite(broken)
    assert broken < zero - 1.0


def test_the_unit_of_a_vector_changes_no_nats() -> None:
    small = block_of(vector(size=3, mean=2.0, stddev=4.0))
    large = block_of(vector(size=3, mean=1.0, stddev=2.0))
    parameters, raw = normal(1, 3), normal(1, 3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(
            large.log_prob(parameters, raw / 2.0), small.log_prob(parameters, raw), rtol=0.0, atol=1e-5
        )


def test_vectors_come_back_in_their_own_unit() -> None:
    block = block_of(vector(size=3, mean=2.0, stddev=4.0))
    raw = normal(4, 3)
    target, present = block.target(raw)
    assert present is None
    torch.testing.assert_close(block.to_data_units(target, drawn=False), raw)


@pytest.mark.parametrize("is_binary", [True, False])
def test_byte_vectors_come_back_as_bytes(is_binary: bool) -> None:
    block = block_of(vector(size=4, element="uint8", is_binary=is_binary, mean=0.4, stddev=0.5))
    draws = block.draw(normal(50, block.num_parameters), normal(50, 4, seed=1))
    assert draws.dtype == torch.uint8
    assert int(draws.max()) <= (1 if is_binary else 255)


def test_discrete_vectors_are_probabilities_whatever_their_spread() -> None:
    raw = torch.tensor([[0], [1]], dtype=torch.uint8)
    block = block_of(vector(size=1, element="uint8", is_binary=True, mean=0.01, stddev=0.1))
    assert float(block.log_prob(zeros(block, 2), raw).exp().sum()) == pytest.approx(1.0)
    bytes_block = block_of(vector(size=1, element="uint8", mean=3.0, stddev=2.0))
    every = torch.arange(256)[:, None].to(torch.uint8)
    assert float(bytes_block.log_prob(zeros(bytes_block, 256), every).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_images_go_channel_first_inside_and_back() -> None:
    block = block_of(image(height=5, width=6, channels=3))
    raw = raw_of((image(height=5, width=6, channels=3),), 2)
    target, _ = block.target(raw)
    assert target[0, :30].tolist() == raw[0, :, :, 0].flatten().tolist()
    assert torch.equal(block.to_data_units(target, drawn=False), raw)


def test_one_pixel_changes_the_score_of_its_image_only() -> None:
    block = block_of(image(height=5, width=6))
    raw = torch.full((2, 5, 6, 1), 90, dtype=torch.uint8)
    raw[1, 2, 3, 0] = 200
    first, second = block.log_prob(zeros(block, 2), raw).flatten().tolist()
    assert second < first


def test_an_image_of_one_shade_stays_finite() -> None:
    block = block_of(image(height=5, width=6, mean=255.0, stddev=0.0))
    assert isinstance(block, ImageBlock)
    raw = torch.full((1, 5, 6, 1), 255, dtype=torch.uint8)
    assert bool(torch.isfinite(block.features(raw)).all())
    assert bool(torch.isfinite(block.log_prob(zeros(block, 1), raw)).all())


def test_blocks_keep_their_numbers_in_float64_buffers() -> None:
    block = block_of(numeric(mean=1.7e9 + 0.123, stddev=10.0))
    assert isinstance(block, NumericBlock)
    assert block.means.item() == 1.7e9 + 0.123
    assert "means" in block.state_dict()
