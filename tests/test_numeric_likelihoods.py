"""Likelihoods of numbers: normalised, the same as scipy's, their draws follow them, and they start from the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from parvae_pipeline.likelihoods import CrossEntropy, Gaussian, Likelihood, UnitGaussian
from parvae_pipeline.numeric_likelihoods import (
    NUM_COMPONENTS,
    ByColumn,
    LogisticMixture,
    NegativeBinomial,
    Spiked,
    StudentT,
    log_gamma,
)

NUM_DRAWS = 20_000
FLOOR = torch.tensor([0.05])


def noise(num_rows: int, num_values: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_values, generator=torch.Generator().manual_seed(seed))


def repeated(parameters: list[float], num_rows: int) -> Tensor:
    return torch.tensor([parameters]).expand(num_rows, len(parameters))


def grid(low: float, high: float, num_points: int = 400_001) -> Tensor:
    return torch.linspace(low, high, num_points, dtype=torch.float64)[:, None]


def counts_likelihood(max_count: int = 400) -> NegativeBinomial:
    return NegativeBinomial(torch.tensor([6.0]), torch.tensor([4.0]), max_count=max_count, num_rows=98)


def counts_as_targets(counts: Tensor) -> Tensor:
    return ((counts - 6.0) / 4.0)[:, None]


@given(st.floats(1e-3, 1e6))
def test_log_gamma_is_scipys(x: float) -> None:
    found = float(log_gamma(torch.tensor(x, dtype=torch.float64)))
    assert found == pytest.approx(special.gammaln(x), rel=1e-12, abs=1e-9)


# Student's t


def test_student_is_scipys_t() -> None:
    likelihood = StudentT(FLOOR)
    target = torch.linspace(-30.0, 30.0, 101)[:, None]
    scale = 0.05 + math.log1p(math.exp(0.3))
    expected = stats.t.logpdf(target.numpy(), likelihood.freedom.item(), loc=1.2, scale=scale)
    found = likelihood.log_prob(repeated([1.2, 0.3], 101), target)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_student_draws_follow_its_density() -> None:
    likelihood = StudentT(FLOOR)
    draws = likelihood.draw(repeated([1.2, 0.3], NUM_DRAWS), noise(NUM_DRAWS, 2)).detach()[:, 0].numpy()
    scale = 0.05 + math.log1p(math.exp(0.3))
    assert stats.kstest(draws, stats.t(likelihood.freedom.item(), loc=1.2, scale=scale).cdf).pvalue > 0.01


def test_a_wild_value_pulls_a_student_less_than_a_gaussian() -> None:
    target = torch.tensor([[1e6]])
    gradients = []
    for likelihood in (StudentT(FLOOR), Gaussian(FLOOR)):
        parameters = torch.zeros(1, 2, requires_grad=True)
        torch.autograd.backward(likelihood.log_prob(parameters, target).sum())
        assert parameters.grad is not None
        gradients.append(float(parameters.grad.norm()))
    assert gradients[0] < 10.0 < gradients[1]


# Mixtures of logistics


def mixture_parameters(seed: int) -> list[float]:
    values = noise(3, NUM_COMPONENTS, seed=seed)
    return [*values[0].tolist(), *(2.0 * values[1]).tolist(), *(values[2] - 1.0).tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_a_continuous_mixture_integrates_to_one(seed: int) -> None:
    points = grid(-80.0, 80.0)
    density = LogisticMixture(FLOOR).log_prob(repeated(mixture_parameters(seed), len(points)).double(), points).exp()
    assert float(torch.trapezoid(density[:, 0], points[:, 0])) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), half_step=st.floats(0.01, 3.0))
def test_a_mixture_on_a_grid_sums_to_one(seed: int, half_step: float) -> None:
    half_steps = torch.tensor([half_step])
    number = math.ceil(60.0 / half_step)
    targets = torch.arange(-number, number + 1)[:, None] * (2.0 * half_step)
    likelihood = LogisticMixture(0.1 * half_steps, half_steps)
    total = likelihood.log_prob(repeated(mixture_parameters(seed), len(targets)), targets).double().exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-4)


def test_a_mixture_is_the_weighted_sum_of_scipys_logistics() -> None:
    parameters = mixture_parameters(7)
    logits, location, raw_scale = np.array(parameters).reshape(3, NUM_COMPONENTS)
    weights, scale = special.softmax(logits), 0.05 + np.log1p(np.exp(raw_scale))
    target = np.linspace(-9, 9, 31)
    expected = np.log(stats.logistic.pdf(target[:, None], location, scale) @ weights)
    found = LogisticMixture(FLOOR).log_prob(
        repeated(parameters, 31), torch.tensor(target, dtype=torch.float32)[:, None]
    )
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_mixture_draws_follow_its_density_and_mean() -> None:
    parameters = mixture_parameters(3)
    logits, location, raw_scale = np.array(parameters).reshape(3, NUM_COMPONENTS)
    weights, scale = special.softmax(logits), 0.05 + np.log1p(np.exp(raw_scale))
    likelihood = LogisticMixture(FLOOR)
    draws = likelihood.draw(repeated(parameters, NUM_DRAWS), noise(NUM_DRAWS, 2))[:, 0].numpy()
    cdf = lambda x: stats.logistic.cdf(np.asarray(x)[:, None], location, scale) @ weights  # noqa: E731
    assert stats.kstest(draws, cdf).pvalue > 0.01
    assert float(likelihood.mean(repeated(parameters, 1))) == pytest.approx(weights @ location, abs=1e-5)


# Counts


@pytest.mark.parametrize(("log_mean", "log_dispersion"), [(1.0, 0.5), (3.0, -1.0), (-2.0, 6.0)])
def test_counts_are_scipys_negative_binomial(log_mean: float, log_dispersion: float) -> None:
    counts = torch.arange(200.0)
    mean, dispersion = math.exp(log_mean), math.exp(log_dispersion)
    expected = stats.nbinom.logpmf(counts.numpy(), dispersion, dispersion / (dispersion + mean))
    found = counts_likelihood().log_prob(repeated([log_mean, log_dispersion], 200), counts_as_targets(counts))
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-4, atol=2e-3)


def test_counts_sum_to_one() -> None:
    counts = torch.arange(3000.0)
    found = counts_likelihood().log_prob(repeated([2.0, 0.5], 3000), counts_as_targets(counts))
    assert float(found.double().exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_what_is_no_count_costs_log_of_rows_plus_two() -> None:
    found = counts_likelihood().log_prob(repeated([2.0, 0.5], 3), counts_as_targets(torch.tensor([-1.0, 2.5, -0.4])))
    assert found.flatten().tolist() == pytest.approx([-math.log(100.0)] * 3)


def test_count_draws_follow_their_probabilities() -> None:
    drawn = counts_likelihood().draw(repeated([1.5, 0.7], NUM_DRAWS), noise(NUM_DRAWS, 1))[:, 0] * 4.0 + 6.0
    counts = np.bincount(np.rint(drawn.numpy()).astype(int), minlength=16)[:16]
    mean, dispersion = math.exp(1.5), math.exp(0.7)
    expected = stats.nbinom.pmf(np.arange(16), dispersion, dispersion / (dispersion + mean)) * NUM_DRAWS
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01


def test_count_draws_stop_at_the_largest_count() -> None:
    drawn = counts_likelihood(max_count=5).draw(repeated([3.0, 0.7], 500), noise(500, 1)) * 4.0 + 6.0
    assert float(drawn.max()) == pytest.approx(5.0)


# Spikes


def spiked(*, on_grid: bool) -> Spiked:
    rest: Likelihood = LogisticMixture(FLOOR, torch.tensor([0.5])) if on_grid else Gaussian(FLOOR)
    return Spiked(rest, torch.tensor([[-3.0, 2.0, math.nan]]), torch.tensor([on_grid]))


def test_spikes_and_the_rest_share_all_probability() -> None:
    likelihood = spiked(on_grid=False)
    points = torch.cat([torch.tensor([[-3.0], [2.0]], dtype=torch.float64), grid(-40.0, 40.0, 100_002)])
    log_prob = likelihood.log_prob(repeated([0.2, 0.5, -0.4, 9.0, 0.0, 0.3], len(points)).double(), points)[:, 0]
    total = log_prob[:2].exp().sum() + torch.trapezoid(log_prob[2:].exp(), points[2:, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_spikes_on_a_grid_sum_to_one_with_the_rest() -> None:
    likelihood = spiked(on_grid=True)
    targets = torch.arange(-200.0, 201.0)[:, None]
    parameters = repeated([0.2, 0.5, -0.4, 9.0, *mixture_parameters(1)], len(targets))
    assert float(likelihood.log_prob(parameters, targets).double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_spikes_are_drawn_as_often_as_their_probability() -> None:
    drawn = spiked(on_grid=False).draw(repeated([0.2, 0.5, -0.4, 9.0, 0.0, 0.3], NUM_DRAWS), noise(NUM_DRAWS, 2))
    shares = [float((drawn == value).float().mean()) for value in (-3.0, 2.0)]
    assert shares == pytest.approx(special.softmax([0.2, 0.5, -0.4])[1:].tolist(), abs=0.01)


@pytest.mark.parametrize(("logits", "expected"), [([0.0, 3.0, 1.0], -3.0), ([3.0, 0.0, 1.0], 0.25)])
def test_the_expected_value_is_the_likeliest_spike_or_that_of_the_rest(logits: list[float], expected: float) -> None:
    assert spiked(on_grid=False).mean(torch.tensor([[*logits, 9.0, 0.25, 0.3]])).item() == expected


def test_spikes_start_with_their_shares() -> None:
    likelihood = spiked(on_grid=False)
    target = torch.tensor([-3.0] * 60 + [2.0] * 30 + [0.1, 0.9] * 5)[:, None]
    initial = likelihood.initial_parameters(target, torch.ones_like(target, dtype=torch.bool))
    shares = torch.softmax(initial[:3], dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), rtol=0.0, atol=0.02)
    assert float(initial[4]) == pytest.approx(0.5)


# Several kinds in one block


def test_columns_of_several_kinds_keep_their_places() -> None:
    parts = [(Gaussian(torch.tensor([0.1, 0.1])), [2, 0]), (StudentT(FLOOR), [1])]
    likelihood = ByColumn(parts)
    parameters, target = noise(7, likelihood.num_parameters), noise(7, 3, seed=1)
    found = likelihood.log_prob(parameters, target)
    gaussian = parts[0][0].log_prob(parameters[:, :4], target[:, [2, 0]])
    torch.testing.assert_close(found[:, [2, 0]], gaussian)
    torch.testing.assert_close(found[:, [1]], parts[1][0].log_prob(parameters[:, 4:], target[:, [1]]))
    assert likelihood.draw(parameters, noise(7, likelihood.num_noise)).shape == (7, 3)
    assert len(dict(likelihood.named_parameters())) == 1


# Textbook losses


def test_mse_is_half_the_squared_error_and_a_constant() -> None:
    parameters, target = noise(5, 3), noise(5, 3, seed=1)
    expected = 0.5 * (parameters - target).square() + 0.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(-UnitGaussian(3).log_prob(parameters, target), expected)


def test_bce_is_torchs_binary_cross_entropy() -> None:
    parameters, target = noise(5, 3), torch.sigmoid(noise(5, 3, seed=1))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(parameters, target, reduction="none")
    torch.testing.assert_close(-CrossEntropy(3).log_prob(parameters, target), expected)


# What training needs


@pytest.mark.parametrize("kind", ["student", "mixture", "grid", "counts", "spiked"])
@pytest.mark.parametrize("value", [-1e6, -3.0, 0.0, 2.0, 1e6])
def test_gradients_are_finite_and_the_start_beats_zeros(kind: str, value: float) -> None:
    likelihood = {
        "student": StudentT(FLOOR),
        "mixture": LogisticMixture(FLOOR),
        "grid": LogisticMixture(torch.tensor([0.01]), torch.tensor([0.1])),
        "counts": counts_likelihood(),
        "spiked": spiked(on_grid=False),
    }[kind]
    data = counts_as_targets(torch.poisson(torch.full((500,), 8.0), generator=torch.Generator().manual_seed(0)))
    initial = likelihood.initial_parameters(data, torch.ones_like(data, dtype=torch.bool))
    zeros = torch.zeros_like(initial)
    started, blank = (likelihood.log_prob(p.expand(500, -1), data).mean().item() for p in (initial, zeros))
    assert started > blank
    parameters = initial.unsqueeze(0).clone().requires_grad_(True)
    log_prob = likelihood.log_prob(parameters, torch.tensor([[value]]))
    torch.autograd.backward(log_prob.sum())
    assert parameters.grad is not None
    assert bool(torch.isfinite(log_prob).all())
    assert bool(torch.isfinite(parameters.grad).all())
