"""Blocks: raw columns in, finite features, log-densities per standard deviation, data units out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from builders import boolean, category, image, numeric, random_raw, schema_of, vector
from torch import Tensor

from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, UNSEEN_CODE, Column
from parvae_pipeline.block import Block
from parvae_pipeline.blocks import BLOCKS, ImageBlock
from parvae_pipeline.numeric_block import MIN_SCALE, NumericBlock

NUM_ROWS = 100
"""Rows that the schemas were measured on."""


def block_of(*columns: Column) -> Block:
    (block,) = schema_of(*columns, num_rows=NUM_ROWS).inputs
    return BLOCKS[block.role](block, NUM_ROWS)


def zeros(block: Block, num_rows: int) -> Tensor:
    return torch.zeros(num_rows, block.num_parameters)


def normal(num_rows: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def numbers(*values: float) -> Tensor:
    return torch.tensor([[value] for value in values], dtype=torch.float64)


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


def raw_of(columns: tuple[Column, ...], num_rows: int) -> Tensor:
    (raw,) = random_raw(schema_of(*columns, num_rows=NUM_ROWS), num_rows).values()
    return raw


# Every block


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


# Numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1.7e308])
def test_no_number_makes_an_infinite_feature_or_score(value: float) -> None:
    for column in (numeric(num_nulls=3), numeric(mean=-1e307, stddev=1e-12)):
        block, raw = block_of(column), numbers(value)
        target, _ = block.target(raw)
        assert bool(torch.isfinite(target).all())
        assert bool(torch.isfinite(block.features(raw)).all())
        assert bool(torch.isfinite(block.log_prob(zeros(block, 1), raw)).all())


def test_a_number_further_out_is_less_likely_even_beyond_what_the_encoder_sees() -> None:
    block, raw = block_of(numeric()), numbers(10.0, 30.0, 1000.0, 1e5)
    nats = block.log_prob(zeros(block, 4), raw).flatten().tolist()
    assert nats == sorted(nats, reverse=True)
    assert len(set(nats)) == 4
    assert block.features(raw)[1:].flatten().tolist() == [20.0, 20.0, 20.0]


def test_the_density_of_a_number_is_per_standard_deviation_of_its_column() -> None:
    block = block_of(numeric(mean=50.0, stddev=4.0))
    parameters = torch.tensor([[0.25, 0.0]])
    scale = 4.0 * (MIN_SCALE + math.log(2.0))
    present = math.log1p(-1.0 / (NUM_ROWS + 2))
    per_unit = float(torch.distributions.Normal(51.0, scale).log_prob(torch.tensor(47.0)))
    assert block.log_prob(parameters, numbers(47.0)).item() == pytest.approx(
        per_unit + math.log(4.0) + present, abs=1e-5
    )


def test_the_unit_of_a_number_changes_no_nats() -> None:
    metres = block_of(numeric(mean=3.0, stddev=2.0))
    halves = block_of(numeric(mean=6.0, stddev=4.0))
    parameters = normal(1, 2)
    torch.testing.assert_close(
        halves.log_prob(parameters, numbers(9.0)), metres.log_prob(parameters, numbers(4.5)), rtol=0.0, atol=1e-6
    )


def test_an_ordinary_value_of_a_wide_column_costs_less_than_a_null() -> None:
    block = block_of(numeric(mean=1e6, stddev=1e6))
    value, null = block.log_prob(zeros(block, 2), numbers(1.5e6, math.nan)).flatten().tolist()
    assert value > null


def test_large_numbers_keep_their_differences() -> None:
    # Seconds since 1970, one apart: in float32 they would be the same number.
    block = block_of(numeric(mean=1.7e9, stddev=10.0))
    features = block.features(numbers(1.7e9, 1.7e9 + 1.0))
    assert float(features[1, 0] - features[0, 0]) == pytest.approx(0.1, abs=1e-6)


def test_a_rounded_column_has_no_scale_below_half_its_step() -> None:
    block = block_of(numeric(mean=0.0, stddev=2.0, resolution=1.0, arrow_type="int64"))
    parameters = torch.tensor([[0.0, -1e4]])
    # A quarter of the standard deviation, and the density is per standard deviation.
    expected = torch.distributions.Normal(0.0, 0.25).log_prob(torch.tensor(0.0)) + math.log1p(-1.0 / (NUM_ROWS + 2))
    assert block.log_prob(parameters, numbers(0.0)).item() == pytest.approx(float(expected), abs=1e-5)


def test_a_constant_column_named_numeric_stays_finite() -> None:
    block = block_of(numeric(mean=7.0, stddev=0.0, minimum=7.0, maximum=7.0))
    raw = numbers(7.0, 8.0, math.nan)
    assert bool(torch.isfinite(block.features(raw)).all())
    assert bool(torch.isfinite(block.log_prob(zeros(block, 3), raw)).all())
    assert block.draw(zeros(block, 3), normal(3, 1)).flatten().tolist() == [7.0, 7.0, 7.0]


def test_data_units_invert_the_standardisation() -> None:
    block = block_of(numeric("a", mean=-3.0, stddev=0.1), numeric("b", mean=1e6, stddev=1e3))
    raw = torch.tensor([[-3.05, 1_000_500.0], [-2.9, 998_000.0]], dtype=torch.float64)
    target, _ = block.target(raw)
    torch.testing.assert_close(block.to_data_units(target, drawn=False), raw, rtol=1e-7, atol=0.0)


def test_whole_numbers_come_back_whole() -> None:
    block = block_of(
        numeric("count", mean=3.3, stddev=2.7, minimum=0.0, maximum=9.0, arrow_type="int32", resolution=1.0),
        numeric("real", mean=3.3, stddev=2.7, minimum=0.0, maximum=9.0),
    )
    parameters = normal(50, 4)
    for rows in (block.mean(parameters), block.draw(parameters, normal(50, 2, seed=1))):
        assert torch.equal(rows[:, 0], rows[:, 0].round())
        assert not torch.equal(rows[:, 1], rows[:, 1].round())


def test_draws_stay_between_the_extremes_of_the_data() -> None:
    block = block_of(
        numeric("a", mean=5.0, stddev=3.0, minimum=4.0, maximum=5.5),
        numeric("b", mean=5.0, stddev=3.0, minimum=4.0, maximum=6.0, arrow_type="int64", resolution=1.0),
    )
    draws = block.draw(zeros(block, 500), normal(500, 2))
    assert float(draws.min()) == 4.0
    assert float(draws[:, 0].max()) == 5.5
    assert float(draws[:, 1].max()) == 6.0


def test_means_may_leave_the_extremes() -> None:
    # A reconstruction shows what the model expects; only draws are kept inside the data.
    block = block_of(numeric(mean=5.0, stddev=3.0, minimum=4.0, maximum=5.5))
    assert block.mean(torch.tensor([[2.0, 0.0]])).item() == pytest.approx(11.0)


# Nulls


def nullable(name: str, *, num_nulls: int) -> Column:
    kinds: dict[str, Any] = {"numeric": numeric, "boolean": boolean, "category": category}
    column: Column = kinds[name](num_nulls=num_nulls)
    return column


NULL_AND_VALUE = {
    "numeric": numbers(math.nan, 0.5),
    "boolean": torch.tensor([[math.nan], [1.0]]),
    "category": torch.tensor([[NULL_CODE], [FIRST_LEVEL_CODE]]),
}


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
def test_a_null_is_scored_by_its_logit_alone(kind: str) -> None:
    block = block_of(nullable(kind, num_nulls=20))
    raw = NULL_AND_VALUE[kind]
    parameters = normal(2, block.num_parameters)
    parameters[:, -1] = 0.7
    null, value = block.log_prob(parameters, raw).flatten().tolist()
    assert null == pytest.approx(-math.log1p(math.exp(-0.7)), abs=1e-6)
    # The value's nats change with the logit by exactly the nats of being present.
    surely_present = parameters.clone()
    surely_present[:, -1] = -40.0
    certain = block.log_prob(surely_present, raw)[1].item()
    assert certain - value == pytest.approx(math.log1p(math.exp(0.7)), abs=1e-5)


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
def test_a_null_where_training_had_none_costs_log_of_rows_plus_two(kind: str) -> None:
    block = block_of(nullable(kind, num_nulls=0))
    null, _ = block.log_prob(zeros(block, 2), NULL_AND_VALUE[kind]).flatten().tolist()
    assert null == pytest.approx(-math.log(NUM_ROWS + 2), abs=1e-5)


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
def test_columns_that_never_were_null_are_never_drawn_null(kind: str) -> None:
    block = block_of(nullable(kind, num_nulls=0))
    noise = torch.cat([normal(200, block.num_noise), torch.full((1, block.num_noise), -40.0)])
    draws = block.draw(zeros(block, 201), noise)
    assert bool(torch.isfinite(draws).all())
    assert not (kind == "category" and (draws == NULL_CODE).any())
    assert block.num_noise == 1


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
def test_nulls_are_drawn_as_often_as_their_logit_says(kind: str) -> None:
    block = block_of(nullable(kind, num_nulls=20))
    parameters = zeros(block, 4000)
    parameters[:, -1] = math.log(0.3 / 0.7)
    draws = block.draw(parameters, normal(4000, block.num_noise))
    null = draws == NULL_CODE if kind == "category" else torch.isnan(draws)
    assert float(null.float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
@pytest.mark.parametrize(("logit", "is_null"), [(1.0, True), (-1.0, False)])
def test_the_expected_row_is_null_where_that_is_likelier(kind: str, logit: float, is_null: bool) -> None:
    block = block_of(nullable(kind, num_nulls=20))
    parameters = zeros(block, 1)
    parameters[:, -1] = logit
    mean = block.mean(parameters)
    assert bool((mean == NULL_CODE) if kind == "category" else torch.isnan(mean)) is is_null


@pytest.mark.parametrize("kind", NULL_AND_VALUE)
def test_the_logit_starts_at_the_share_of_nulls(kind: str) -> None:
    block = block_of(nullable(kind, num_nulls=20))
    raw = torch.cat([NULL_AND_VALUE[kind][:1].expand(3, -1), NULL_AND_VALUE[kind][1:].expand(7, -1)])
    share = float(torch.sigmoid(block.initial_parameters(raw)[-1]))
    assert share == pytest.approx(3.5 / 11.0, abs=1e-6)


def test_only_columns_with_nulls_in_training_tell_the_encoder_of_them() -> None:
    block = block_of(numeric("a"), numeric("b", num_nulls=4), numeric("c"))
    raw = torch.tensor([[0.0, math.nan, 0.0], [math.nan, 1.0, 0.0]], dtype=torch.float64)
    assert block.num_features == 4
    assert block.features(raw)[:, 3].tolist() == [1.0, 0.0]


def test_a_null_number_looks_like_the_mean_to_the_encoder() -> None:
    block = block_of(numeric(mean=40.0, stddev=3.0, num_nulls=4))
    assert block.features(numbers(math.nan, 40.0))[:, 0].tolist() == [0.0, 0.0]


def test_present_and_null_share_all_probability() -> None:
    for num_nulls in (0, 20):
        block = block_of(boolean(num_nulls=num_nulls))
        raw = torch.tensor([[0.0], [1.0], [math.nan]])
        parameters = normal(1, block.num_parameters).expand(3, -1)
        assert float(block.log_prob(parameters, raw).exp().sum()) == pytest.approx(1.0, abs=1e-5)


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
