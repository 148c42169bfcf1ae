"""Which density a numeric column gets, that the reason says so, and that numbers come back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from parvae.schema import NumericFacts, Schema
from parvae_pipeline.numeric_block import NumericBlock, is_on_grid
from parvae_pipeline.numeric_rules import MAX_ATOMS
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import MAX_DISTINCT, statistics_of

RNG = np.random.default_rng(0)
NUM_ROWS = 4_000


def schema_of_values(values: Any) -> Schema:
    return infer_schema(statistics_of(pa.table({"x": pa.array(values)})), overrides={"x": "numeric"}, label=None)


def facts_of(values: Any) -> tuple[NumericFacts, str]:
    column = schema_of_values(values)["x"]
    return column.facts_as(NumericFacts), column.reason


def block_of(values: Any) -> NumericBlock:
    schema = schema_of_values(values)
    return NumericBlock(schema.inputs[0], schema.num_rows)


def spiked(share: float) -> NDArray[np.float64]:
    return np.where(RNG.random(NUM_ROWS) < share, 0.0, RNG.normal(50.0, 3.0, NUM_ROWS))


@pytest.mark.parametrize(
    ("values", "density", "words"),
    [
        (RNG.normal(size=NUM_ROWS), "gaussian", "Gaussian"),
        (RNG.standard_t(1.5, NUM_ROWS), "student", "heavy tails"),
        (RNG.negative_binomial(1, 0.1, NUM_ROWS), "negative_binomial", "counts"),
        (RNG.integers(17, 90, NUM_ROWS), "logistic_mixture", "steps of 1"),
        (np.round(RNG.normal(5.0, 1.0, NUM_ROWS), 1), "logistic_mixture", "steps of 0.1"),
        (np.concatenate([RNG.normal(-9, 1, 2000), RNG.normal(9, 1, 2000)]), "logistic_mixture", "modes"),
    ],
)
def test_the_shape_of_a_column_chooses_its_density(values: NDArray[Any], density: str, words: str) -> None:
    facts, reason = facts_of(values)
    assert facts.density == density
    assert words in reason


def test_a_long_tail_of_positive_numbers_is_taken_in_logarithms() -> None:
    values = np.exp(RNG.normal(6.0, 2.0, NUM_ROWS))
    facts, reason = facts_of(values)
    assert facts.transform == "log1p"
    assert "in logarithms" in reason
    assert facts.mean == pytest.approx(np.log1p(values).mean())


def test_a_value_that_takes_a_third_of_the_rows_is_a_spike_and_no_part_of_mean_and_spread() -> None:
    facts, reason = facts_of(spiked(0.6))
    assert facts.atoms == (0.0,)
    assert "with a spike (" in reason
    assert facts.mean == pytest.approx(50.0, abs=0.5)
    assert facts.stddev == pytest.approx(3.0, abs=0.5)


def test_values_that_come_again_where_their_neighbours_do_not_are_spikes() -> None:
    prices = np.array([4.99, 19.99, 129.0])
    values = np.where(RNG.random(NUM_ROWS) < 0.1, RNG.choice(prices, NUM_ROWS), RNG.normal(50.0, 30.0, NUM_ROWS))
    facts, reason = facts_of(values)
    assert facts.atoms == tuple(prices)
    assert "with 3 spikes (" in reason


def test_round_numbers_that_people_prefer_are_spikes_of_a_grid() -> None:
    hours = RNG.integers(1, 61, NUM_ROWS)
    values = np.where(RNG.random(NUM_ROWS) < 0.5, np.maximum(10 * (hours // 10), 10), hours)
    facts, _ = facts_of(values)
    assert facts.atoms == (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)[: len(facts.atoms)]
    assert len(facts.atoms) >= 5
    assert is_on_grid(facts)


@pytest.mark.parametrize(
    "values",
    [
        RNG.integers(17, 90, NUM_ROWS),
        RNG.poisson(2.0, NUM_ROWS),
        np.round(RNG.normal(5.0, 1.0, NUM_ROWS), 2),
        RNG.integers(0, 100, (NUM_ROWS, 9)).mean(axis=1),
    ],
)
def test_smooth_numbers_that_come_again_have_no_spikes(values: NDArray[Any]) -> None:
    assert facts_of(values)[0].atoms == ()


def test_a_few_copies_are_no_spike() -> None:
    assert facts_of(np.append(RNG.normal(size=NUM_ROWS), [0.5] * 12))[0].atoms == ()


def test_days_that_come_again_are_no_spikes_of_time() -> None:
    days = np.where(RNG.random(NUM_ROWS) < 0.2, 0, RNG.integers(0, 10_000, NUM_ROWS))
    table = pa.table({"x": days.astype("datetime64[D]").astype("datetime64[us]")})
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    assert schema["x"].facts_as(NumericFacts).atoms == ()


def test_only_the_most_frequent_of_many_spikes_are_kept() -> None:
    values = 1_000.0 * np.repeat(np.arange(2 * MAX_ATOMS), 10 + np.arange(2 * MAX_ATOMS) // MAX_ATOMS) ** 2
    assert facts_of(values)[0].atoms == tuple(1_000.0 * np.arange(MAX_ATOMS, 2 * MAX_ATOMS) ** 2)


def test_a_column_of_spikes_alone_keeps_a_spread() -> None:
    facts, _ = facts_of(np.where(RNG.random(NUM_ROWS) < 0.4, -0.5, 2.25))
    assert facts.atoms == (-0.5, 2.25)
    assert facts.stddev > 1.0


def test_fine_whole_numbers_are_continuous_and_a_null_costs_more() -> None:
    values = RNG.integers(0, 10**6, NUM_ROWS)
    facts, _ = facts_of(values)
    assert not is_on_grid(facts)


def test_too_many_values_to_keep_give_the_moments_of_all_rows_without_the_spike() -> None:
    rest = RNG.normal(50.0, 3.0, 3 * MAX_DISTINCT)
    values = np.concatenate([rest, np.zeros(3 * MAX_DISTINCT)])
    RNG.shuffle(values)
    facts, _ = facts_of(values)
    assert facts.atoms == (0.0,)
    assert facts.mean == pytest.approx(50.0, abs=1.0)
    assert facts.stddev == pytest.approx(3.0, rel=0.5)


def test_facts_survive_json() -> None:
    schema = schema_of_values(spiked(0.6))
    assert Schema.from_json(schema.to_json()) == schema


def test_facts_of_a_bundle_without_densities_are_gaussian() -> None:
    document = schema_of_values(RNG.normal(size=100)).to_json()
    for name in ("density", "transform", "atoms", "step"):
        del document["columns"][0]["facts"][name]
    facts = Schema.from_json(document)["x"].facts_as(NumericFacts)
    assert (facts.density, facts.transform, facts.atoms, facts.step) == ("gaussian", "none", (), 0.0)


@pytest.mark.parametrize(
    "values",
    [
        spiked(0.6),
        np.exp(RNG.normal(6.0, 2.0, NUM_ROWS)),
        np.round(RNG.normal(5.0, 1.0, NUM_ROWS), 1),
        RNG.negative_binomial(1, 0.1, NUM_ROWS),
        RNG.integers(0, 3, NUM_ROWS) * 0.1 - 7.3,
    ],
)
def test_targets_come_back_as_the_numbers_they_were(values: NDArray[Any]) -> None:
    block = block_of(values)
    raw = torch.tensor(values[:200], dtype=torch.float64)[:, None]
    again = block.to_data_units(block.target(raw)[0], drawn=False)
    torch.testing.assert_close(again, raw, rtol=1e-5, atol=1e-9)


def test_numbers_on_a_grid_come_back_exactly() -> None:
    values = np.round(RNG.normal(5.0, 1.0, NUM_ROWS), 1)
    block = block_of(values)
    parameters = block.initial_parameters(torch.tensor(values)[:, None]).expand(300, -1)
    noise = torch.randn(300, block.num_noise, generator=torch.Generator().manual_seed(0))
    assert all(value == round(value, 1) for value in block.draw(parameters, noise).flatten().tolist())


def test_few_rows_are_gaussian_whatever_they_look_like() -> None:
    facts, _ = facts_of([0.0] * 15 + [1e6] * 5)
    assert (facts.density, facts.atoms, facts.transform) == ("gaussian", (), "none")


def test_draws_repeat_the_spike_exactly_as_often_as_the_data() -> None:
    values = spiked(0.6)
    block = block_of(values)
    parameters = block.initial_parameters(torch.tensor(values)[:, None]).expand(5_000, -1)
    noise = torch.randn(5_000, block.num_noise, generator=torch.Generator().manual_seed(0))
    share = float((block.draw(parameters, noise) == 0.0).double().mean())
    assert share == pytest.approx(float((values == 0.0).mean()), abs=0.03)


def test_a_spike_has_a_feature_of_its_own_and_no_distance() -> None:
    block = block_of(spiked(0.6))
    features = block.features(torch.tensor([[0.0], [50.0]], dtype=torch.float64))
    assert features[:, 1].tolist() == [1.0, 0.0]
    assert float(features[0, 0]) == 0.0


@pytest.mark.parametrize(
    "values",
    [
        RNG.standard_t(1.5, NUM_ROWS),
        RNG.negative_binomial(1, 0.1, NUM_ROWS),
        spiked(0.5),
        RNG.lognormal(0, 3, NUM_ROWS),
    ],
)
def test_without_shapes_every_number_is_a_gaussian_of_all_its_values(values: NDArray[Any]) -> None:
    table = pa.table({"x": pa.array(values)})
    schema = infer_schema(statistics_of(table), overrides={"x": "numeric"}, label=None, with_shapes=False)
    facts = schema["x"].facts_as(NumericFacts)
    assert (facts.density, facts.transform, facts.atoms) == ("gaussian", "none", ())
    assert schema["x"].reason.endswith("Gaussian")
    np.testing.assert_allclose([facts.mean, facts.stddev], [values.mean(), values.std()], rtol=1e-9)
    assert facts_of(values)[0] != facts
