"""Blocks of numbers: features, densities per standard deviation, and what a null does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from builders import boolean, category, numeric
from made_blocks import NUM_ROWS, block_of, normal, numbers, zeros

from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, Column
from parvae_pipeline.numeric_block import MIN_SCALE


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
