"""Objectives and the likelihood estimate against closed forms of a linear Gaussian model, whose likelihood is known."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest
import torch
from builders import architecture, random_raw, schema_of, vector
from test_vae_elbo import OBLIQUE, ORTHOGONAL, linear_model, marginal, noise, observations

from parvae.errors import SettingError
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.evaluate import estimate_likelihood, evaluate
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.objectives import OBJECTIVES


def test_the_setting_names_the_objectives_of_the_table() -> None:
    assert get_args(get_type_hints(TrainSettings)["objective"]) == tuple(OBJECTIVES)


def test_the_importance_weighted_estimate_reaches_the_exact_likelihood_where_the_elbo_does_not() -> None:
    model, x = linear_model(OBLIQUE), observations(60)
    exact = -float(marginal(OBLIQUE).log_prob(x.float()).double().mean())
    rows = {"numeric": x.numpy()}
    estimate = estimate_likelihood(model, rows, num_samples=4_000)
    assert estimate.negative_log_likelihood_nats == pytest.approx(exact, abs=5e-3)
    assert evaluate(model, rows).negative_elbo_nats > exact + 0.01
    assert (estimate.num_samples, estimate.num_rows) == (4_000, 60)
    spread = float(marginal(OBLIQUE).log_prob(x.float()).std()) / math.sqrt(60)
    assert estimate.standard_error_nats == pytest.approx(spread, rel=0.05)
    assert "S = 4,000" in str(estimate)
    assert "n = 60" in str(estimate)


def test_with_the_exact_posterior_every_objective_is_the_exact_likelihood() -> None:
    # The weight p(x, z) / q(z | x) is p(x) at every z, so one code suffices for the importance-weighted bound.
    model, x = linear_model(ORTHOGONAL), observations(40)
    raw = {"numeric": x}
    exact = -float(marginal(ORTHOGONAL).log_prob(x.float()).mean())
    steps = torch.stack([noise(40, 2, seed=seed) for seed in range(400)])
    for name, tolerance, codes in (("elbo", 2e-2, steps), ("iwae", 1e-4, steps[:1])):
        loss = OBJECTIVES[name](model, raw, model.posterior(raw), codes, kl_weight=1.0, free_bits_nats=0.0).mean()
        assert float(loss) == pytest.approx(exact, abs=tolerance), name


def test_the_importance_weighted_bound_lies_between_the_elbo_and_the_likelihood() -> None:
    model, x = linear_model(ORTHOGONAL, posterior_shift=0.5), observations(200)
    raw = {"numeric": x}
    exact = -float(marginal(ORTHOGONAL).log_prob(x.float()).mean())
    steps = torch.stack([noise(200, 2, seed=seed) for seed in range(32)])

    def loss(name: str, num_samples: int) -> float:
        codes = steps[:num_samples]
        rows = OBJECTIVES[name](model, raw, model.posterior(raw), codes, kl_weight=1.0, free_bits_nats=0.0)
        assert rows.shape == (200,)
        return float(rows.mean())

    assert loss("elbo", 32) > loss("iwae", 4) > loss("iwae", 32) > exact - 1e-3


def test_beta_weighs_the_rate_alone() -> None:
    model, x = linear_model(ORTHOGONAL), observations(40)
    raw, codes = {"numeric": x}, noise(40, 2)[None]
    terms = model.elbo_terms(raw, codes[0])
    for beta in (0.0, 0.5, 4.0):
        loss = OBJECTIVES["elbo"](model, raw, model.posterior(raw), codes, kl_weight=beta, free_bits_nats=0.0)
        loss = loss.mean()
        torch.testing.assert_close(loss, terms.column_nats.sum(dim=1).mean() + beta * terms.kl_nats.mean())


def gradient(loss: torch.Tensor, model: VariationalAutoencoder) -> list[float]:
    """Of the bias of the encoder's last layer, to five digits."""
    (part,) = torch.autograd.grad(loss, [model.encoder.head.linear.bias], retain_graph=True)
    return [round(float(value), 5) for value in part]


@pytest.mark.parametrize("prior", ["normal", "realnvp"])
def test_free_bits_cost_nothing_and_pull_no_gradient(prior: str) -> None:
    torch.manual_seed(0)
    schema = schema_of(vector(size=3))
    model = VariationalAutoencoder(schema, architecture(prior=prior))
    raw, codes = random_raw(schema, 16), noise(16, 3)[None]

    def loss(free_bits_nats: float) -> torch.Tensor:
        rows = OBJECTIVES["elbo"](model, raw, model.posterior(raw), codes, kl_weight=1.0, free_bits_nats=free_bits_nats)
        return rows.mean()

    distortion = model.elbo_terms(raw, codes[0]).column_nats.sum(dim=1).mean()
    # 3 dimensions with 50 nats each to spend: more than any code of an untrained encoder takes.
    torch.testing.assert_close(loss(50.0), distortion + 150.0)
    assert gradient(loss(50.0), model) == gradient(distortion, model) != gradient(loss(0.0), model)
    torch.testing.assert_close(loss(1e-9), loss(0.0))


def test_free_bits_are_counted_for_every_dimension_of_a_normal_prior() -> None:
    schema = schema_of(vector(size=3))
    model = VariationalAutoencoder(schema, architecture(latent_size=2))
    mean, log_variance = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    raw, codes = random_raw(schema, 1), torch.zeros(1, 1, 2)
    distortion = model.column_nats(raw, mean).sum()
    loss = OBJECTIVES["elbo"](model, raw, (mean, log_variance), codes, kl_weight=1.0, free_bits_nats=0.5).mean()
    # KL(N(2, 1) || N(0, 1)) = 2 nats, and the idle dimension pays its free 0.5.
    torch.testing.assert_close(loss, distortion + 2.0 + 0.5)


def test_free_bits_belong_to_the_elbo() -> None:
    with pytest.raises(SettingError, match=r"train\.free_bits_nats is 0\.5; it must be 0 where train\.objective"):
        TrainSettings(objective="iwae", free_bits_nats=0.5)
    assert dataclasses.replace(TrainSettings(), objective="iwae").num_samples is None
