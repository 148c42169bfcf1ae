"""Corrupted rows: what is blurred, what is hidden, and that the encoder cannot see it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from builders import architecture, boolean, category, numeric, random_raw, schema_of, vector

from parvae.errors import SettingError
from parvae.schema import NumericFacts
from parvae_pipeline.corruption import HIDDEN_GROUPS, Corruption, Corruptor, draw_corruption, hidden_groups
from parvae_pipeline.model import VariationalAutoencoder

ORDINARY = numeric("z")
WITH_ATOM = dataclasses.replace(ORDINARY, facts=dataclasses.replace(ORDINARY.facts_as(NumericFacts), atoms=(0.0,)))
SCHEMA = schema_of(
    numeric("a", num_nulls=5), numeric("b"), WITH_ATOM, boolean("flag", num_nulls=5), category("city", num_nulls=5)
)


def denoising_model() -> VariationalAutoencoder:
    torch.manual_seed(0)
    return VariationalAutoencoder(SCHEMA, architecture(denoising=True)).eval()


def test_a_fifth_of_the_values_is_hidden_and_the_rest_blurred_alike_in_a_row() -> None:
    level, noise = draw_corruption(torch.randn(4_000, 22, generator=torch.Generator().manual_seed(0)))
    assert noise is not None
    is_hidden = level == 1.0
    assert 0.18 < is_hidden.float().mean() < 0.22
    assert torch.all(noise[is_hidden] == 0.0)
    visible = level[~is_hidden]
    assert 0.05 / (1 + 0.05**2) ** 0.5 - 1e-6 <= visible.min() < visible.max() <= 0.5**0.5 + 1e-6
    spread = torch.where(is_hidden, torch.nan, level).nan_to_num(0.0)
    assert all(len(set(row[row > 0].tolist())) <= 1 for row in spread[:100])


def test_the_corruption_of_a_row_is_its_own() -> None:
    noise = torch.randn(10, 8, generator=torch.Generator().manual_seed(7))
    whole, half = draw_corruption(noise), draw_corruption(noise[4:])
    assert torch.equal(whole.level[4:], half.level)
    assert whole.noise is not None
    assert half.noise is not None
    assert torch.equal(whole.noise[4:], half.noise)


@pytest.mark.parametrize("num_values", [1, 2, 3, 4, 11])
def test_every_value_is_hidden_in_exactly_one_group(num_values: int) -> None:
    groups = hidden_groups(num_values)
    assert groups.shape == (min(HIDDEN_GROUPS, num_values), num_values)
    assert torch.equal(groups.sum(dim=0), torch.ones(num_values))


@pytest.mark.parametrize("index", range(5))
def test_the_encoder_cannot_see_a_hidden_value(index: int) -> None:
    model, raw = denoising_model(), random_raw(SCHEMA, 6)
    level = torch.zeros(1, 5)
    level[0, index] = 1.0
    hidden, _ = model.posterior(raw, Corruption(level, None))
    block = ["numeric", "numeric", "numeric", "boolean", "category"][index]
    changed = {name: tensor.clone() for name, tensor in raw.items()}
    changed[block][:, index if block == "numeric" else 0] = {"numeric": 0.0, "boolean": torch.nan, "category": 0}[block]
    assert torch.equal(hidden, model.posterior(changed, Corruption(level, None))[0])
    assert not torch.equal(model.posterior(raw)[0], model.posterior(changed)[0])


def test_a_level_of_0_is_a_clean_row() -> None:
    model, raw = denoising_model(), random_raw(SCHEMA, 6)
    clean = Corruption(torch.zeros(6, 5), torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))
    for given, wanted in zip(model.posterior(raw, clean), model.posterior(raw), strict=True):
        assert torch.equal(given, wanted)


def test_blurring_keeps_the_variance_and_leaves_indicators_alone() -> None:
    model = denoising_model()
    corruptor = model.corruptor
    assert corruptor is not None
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(20_000, model.num_features, generator=generator)
    level = torch.full((20_000, 5), 0.6)
    blurred = corruptor(features, Corruption(level, torch.randn(20_000, 5, generator=generator)))
    numbers = blurred[:, :3]
    torch.testing.assert_close(numbers.std(dim=0), torch.ones(3), atol=0.03, rtol=0)
    assert torch.equal(blurred[:, 3 : model.num_features], features[:, 3:])
    assert torch.equal(blurred[:, model.num_features :], level)


def test_columns_that_are_no_scalars_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"model\.denoising is true, but column 'v' is of role vector"):
        VariationalAutoencoder(schema_of(numeric("a"), vector("v")), architecture(denoising=True))


def test_a_model_without_denoising_has_the_weights_it_had() -> None:
    plain = VariationalAutoencoder(SCHEMA, architecture())
    assert plain.corruptor is None
    assert not any("corruptor" in name for name in plain.state_dict())
    assert isinstance(denoising_model().corruptor, Corruptor)
    assert not any("corruptor" in name for name in denoising_model().state_dict())
