"""Every likelihood is a normalised density, and its draws follow it.

Letters in shapes: B rows, C values, K levels.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch import distributions as torch_distributions

from parvae_pipeline.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    SharedGaussian,
    log_one_minus_exp,
    standard_normal_cdf,
)

BYTES = torch.arange(256.0)[:, None]
NUM_DRAWS = 20_000


def noise(num_rows: int, num_values: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_values, generator=torch.Generator().manual_seed(seed))


def everywhere(target: Tensor) -> Tensor:
    return torch.ones_like(target, dtype=torch.bool)


def byte_likelihood(*, mean: float = 100.0, stddev: float = 50.0) -> DiscretizedLogistic:
    return DiscretizedLogistic(1, mean=mean, stddev=stddev)


def byte_probabilities(likelihood: DiscretizedLogistic, location: float, log_scale: float) -> NDArray[np.float64]:
    parameters = torch.tensor([[location, log_scale]]).expand(256, 2)
    return likelihood.log_prob(parameters, BYTES).double().exp().flatten().numpy()


# Gaussian


def test_gaussian_is_torchs_normal_with_scale_above_its_floor() -> None:
    floor = torch.tensor([0.1, 0.5])
    parameters, target = noise(50, 4, seed=1), noise(50, 2, seed=2)
    scale = floor + torch.nn.functional.softplus(parameters[:, 2:])
    expected = torch_distributions.Normal(parameters[:, :2], scale).log_prob(target)
    torch.testing.assert_close(Gaussian(floor).log_prob(parameters, target), expected)


@pytest.mark.parametrize(("location", "raw_scale"), [(0.0, 0.0), (2.0, -3.0), (-1.0, 2.0)])
def test_gaussian_integrates_to_one(location: float, raw_scale: float) -> None:
    grid = torch.linspace(-60.0, 60.0, 200_001, dtype=torch.float64)[:, None]
    parameters = torch.tensor([[location, raw_scale]], dtype=torch.float64).expand(len(grid), 2)
    density = Gaussian(torch.tensor([0.01])).log_prob(parameters, grid).exp()
    assert float(torch.trapezoid(density[:, 0], grid[:, 0])) == pytest.approx(1.0, abs=1e-6)


def test_scale_never_falls_below_the_floor() -> None:
    likelihood = Gaussian(torch.tensor([0.25]))
    log_density = likelihood.log_prob(torch.tensor([[0.0, -1e4]]), torch.zeros(1, 1))
    assert float(log_density) == pytest.approx(stats.norm.logpdf(0.0, scale=0.25), abs=1e-5)


def test_gaussian_draws_follow_its_density() -> None:
    parameters = torch.tensor([[1.5, -0.5]]).expand(NUM_DRAWS, 2)
    scale = 0.1 + math.log1p(math.exp(-0.5))
    draws = Gaussian(torch.tensor([0.1])).draw(parameters, noise(NUM_DRAWS, 1))
    assert stats.kstest(draws[:, 0].numpy(), stats.norm(1.5, scale).cdf).pvalue > 0.01


def test_gaussian_mean_is_its_location() -> None:
    assert Gaussian(torch.tensor([0.1])).mean(torch.tensor([[3.0, 1.0]])).tolist() == [[3.0]]


# Gaussian with one scale for all values


def test_shared_gaussian_is_torchs_normal_with_one_scale() -> None:
    likelihood = SharedGaussian(3)
    with torch.no_grad():
        likelihood.log_scale.fill_(0.7)
    parameters, target = noise(20, 3, seed=1), noise(20, 3, seed=2)
    # The bound at exp(-6) moves a log-scale of 0.7 by about exp(-6.7).
    scale = math.exp(-6.0 + math.log1p(math.exp(6.7)))
    assert scale == pytest.approx(math.exp(0.7), rel=2e-3)
    expected = torch_distributions.Normal(parameters, scale).log_prob(target)
    torch.testing.assert_close(likelihood.log_prob(parameters, target), expected)


def test_shared_scale_is_bounded_however_far_the_weight_runs() -> None:
    likelihood = SharedGaussian(1)
    with torch.no_grad():
        likelihood.log_scale.fill_(-1e4)
        log_density = likelihood.log_prob(torch.zeros(1, 1), torch.zeros(1, 1))
    assert float(log_density) == pytest.approx(stats.norm.logpdf(0.0, scale=math.exp(-6.0)), abs=1e-4)


def test_shared_gaussian_draws_follow_its_density() -> None:
    likelihood = SharedGaussian(1)
    with torch.no_grad():
        likelihood.log_scale.fill_(-1.0)
        draws = likelihood.draw(torch.full((NUM_DRAWS, 1), 2.0), noise(NUM_DRAWS, 1, seed=3))
    scale = math.exp(-6.0 + math.log1p(math.exp(5.0)))
    assert stats.kstest(draws[:, 0].numpy(), stats.norm(2.0, scale).cdf).pvalue > 0.01
    assert likelihood.mean(torch.full((1, 1), 2.0)).item() == 2.0


# Bernoulli


def test_bernoulli_is_torchs_bernoulli_and_sums_to_one() -> None:
    logits = torch.tensor([[-30.0, -1.0, 0.0, 2.0, 30.0]])
    zeros, ones = torch.zeros_like(logits), torch.ones_like(logits)
    likelihood = Bernoulli(5, num_rows=100)
    for target in (zeros, ones):
        expected = torch_distributions.Bernoulli(logits=logits.double()).log_prob(target.double())
        torch.testing.assert_close(likelihood.log_prob(logits, target).double(), expected, rtol=1e-5, atol=1e-6)
    total = likelihood.log_prob(logits, zeros).exp() + likelihood.log_prob(logits, ones).exp()
    torch.testing.assert_close(total, ones)


def test_bernoulli_draws_follow_its_probabilities() -> None:
    probabilities = [0.03, 0.5, 0.8]
    logits = torch.logit(torch.tensor([probabilities])).expand(NUM_DRAWS, 3)
    draws = Bernoulli(3, num_rows=100).draw(logits, noise(NUM_DRAWS, 3, seed=4))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    for count, probability in zip(draws.sum(0).int().tolist(), probabilities, strict=True):
        assert stats.binomtest(count, NUM_DRAWS, probability).pvalue > 0.01


def test_bernoulli_mean_is_the_likelier_value() -> None:
    assert Bernoulli(2, num_rows=100).mean(torch.tensor([[-0.1, 0.1]])).tolist() == [[0.0, 1.0]]


# Categorical


def test_categorical_is_torchs_categorical_scaled_by_the_listed_mass() -> None:
    unseen = torch.tensor([0.1, 0.25])
    likelihood = Categorical([3, 4], unseen)
    parameters = noise(40, 7, seed=5)
    target = torch.stack([torch.arange(40) % 3, torch.arange(40) % 4], dim=1)
    expected = torch.stack(
        [
            torch_distributions.Categorical(logits=parameters[:, :3]).log_prob(target[:, 0]) + math.log(0.9),
            torch_distributions.Categorical(logits=parameters[:, 3:]).log_prob(target[:, 1]) + math.log(0.75),
        ],
        dim=1,
    )
    torch.testing.assert_close(likelihood.log_prob(parameters, target), expected)


@settings(max_examples=25, deadline=None)
@given(
    logits=st.lists(st.floats(-80.0, 80.0, width=32), min_size=1, max_size=6),
    unseen=st.floats(1e-6, 0.5),
)
def test_listed_levels_and_the_unseen_mass_sum_to_one(logits: list[float], unseen: float) -> None:
    levels = len(logits)
    likelihood = Categorical([levels], torch.tensor([unseen], dtype=torch.float64))
    target = torch.tensor([[-1], *([level] for level in range(levels))])
    nats = likelihood.log_prob(torch.tensor([logits]).expand(levels + 1, levels), target)
    assert float(nats.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(nats[0, 0]) == pytest.approx(math.log(unseen), rel=1e-5)


def test_categorical_draws_follow_its_probabilities() -> None:
    probabilities = torch.tensor([0.05, 0.6, 0.3, 0.05])
    likelihood = Categorical([4, 1], torch.tensor([0.01, 0.01]))
    parameters = torch.cat([probabilities.log(), torch.zeros(1)]).expand(NUM_DRAWS, 5)
    draws = likelihood.draw(parameters, noise(NUM_DRAWS, 2, seed=6))
    counts = torch.bincount(draws[:, 0], minlength=4).numpy()
    expected = probabilities.double().numpy() / float(probabilities.double().sum())
    assert stats.chisquare(counts, NUM_DRAWS * expected).pvalue > 0.01
    assert draws[:, 1].unique().tolist() == [0]


def test_categorical_draws_stay_listed_at_the_ends_of_the_noise() -> None:
    likelihood = Categorical([3], torch.tensor([0.01]))
    extreme = torch.tensor([[-40.0], [40.0]])
    assert likelihood.draw(torch.zeros(2, 3), extreme).flatten().tolist() == [0, 2]


def test_categorical_mean_is_the_most_probable_level() -> None:
    likelihood = Categorical([3, 2], torch.tensor([0.01, 0.01]))
    assert likelihood.mean(torch.tensor([[0.0, 5.0, 1.0, 2.0, 1.0]])).tolist() == [[1, 0]]


# Discretised logistic


def test_discretized_logistic_is_the_logistic_mass_of_each_step() -> None:
    location, log_scale = 0.4, math.log(0.3)
    found = byte_probabilities(byte_likelihood(), location, log_scale)
    logistic = stats.logistic(loc=100.0 + 50.0 * location, scale=50.0 * 0.3)
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    np.testing.assert_allclose(found, np.diff(logistic.cdf(edges)), rtol=2e-4)


def test_discretized_logistic_agrees_with_torchs_transformed_distribution() -> None:
    base = torch_distributions.Uniform(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    transforms = [
        torch_distributions.SigmoidTransform().inv,
        torch_distributions.AffineTransform(loc=120.0, scale=25.0),
    ]
    logistic = torch_distributions.TransformedDistribution(base, transforms)
    steps = torch.arange(1.0, 255.0, dtype=torch.float64)
    expected = (logistic.cdf(steps + 0.5) - logistic.cdf(steps - 0.5)).numpy()
    found = byte_probabilities(byte_likelihood(), 0.4, math.log(0.5))
    np.testing.assert_allclose(found[1:255], expected, rtol=2e-4)


@settings(max_examples=50, deadline=None)
@given(
    location=st.floats(-6.0, 6.0),
    log_scale=st.floats(-12.0, 5.0),
    mean=st.floats(0.0, 255.0),
    stddev=st.floats(0.05, 127.0),
)
def test_bytes_sum_to_one(location: float, log_scale: float, mean: float, stddev: float) -> None:
    probabilities = byte_probabilities(byte_likelihood(mean=mean, stddev=stddev), location, log_scale)
    assert np.isfinite(probabilities).all()
    # float32 places the edge between two steps to within about 2e-4 of the narrowest scale.
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("location", [-1e6, -1e3, 1e3, 1e6])
@pytest.mark.parametrize("log_scale", [-1e6, 0.0, 1e6])
def test_bytes_sum_to_one_however_far_the_parameters_run(location: float, log_scale: float) -> None:
    parameters = torch.tensor([[location, log_scale]]).expand(256, 2)
    nats = byte_likelihood().log_prob(parameters, BYTES)
    assert bool(torch.isfinite(nats).all())
    assert float(nats.double().exp().sum()) == pytest.approx(1.0, abs=1e-3)


def test_a_byte_far_from_the_mean_keeps_its_exact_distance() -> None:
    # A plain difference of two sigmoids is 0 here; the true mass is about exp(-2 * 200).
    likelihood = byte_likelihood(mean=0.0, stddev=1.0)
    nats = likelihood.log_prob(torch.tensor([[0.0, math.log(0.5)]]), torch.tensor([[200.0]]))
    expected = -2.0 * 199.5 + math.log(-math.expm1(-2.0))
    assert float(nats) == pytest.approx(expected, rel=1e-5)


def test_byte_draws_follow_their_probabilities() -> None:
    likelihood = byte_likelihood()
    location, log_scale = -0.2, math.log(0.35)
    parameters = torch.tensor([[location, log_scale]]).expand(NUM_DRAWS, 2)
    draws = likelihood.draw(parameters, noise(NUM_DRAWS, 1, seed=7))
    assert torch.equal(draws, draws.round())
    expected = NUM_DRAWS * byte_probabilities(likelihood, location, log_scale)
    observed = np.bincount(draws.flatten().int().numpy(), minlength=256).astype(float)
    # Steps with fewer than 20 expected draws are counted together.
    common = expected >= 20.0
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01


def test_byte_mean_is_the_location_as_a_byte() -> None:
    means = byte_likelihood().mean(torch.tensor([[0.508, 0.0], [-100.0, 0.0], [100.0, 0.0]]))
    assert means.flatten().tolist() == [125.0, 0.0, 255.0]


# All of them

REAL: dict[str, Likelihood] = {
    "gaussian": Gaussian(torch.tensor([1e-3])),
    "shared gaussian": SharedGaussian(1),
    "discretized logistic": DiscretizedLogistic(1, mean=0.0, stddev=1.0),
}


def test_gaussian_starts_with_the_mean_and_spread_of_what_is_present() -> None:
    target = torch.tensor([[1.0], [3.0], [5.0], [1e6]])
    present = torch.tensor([[True], [True], [True], [False]])
    likelihood = Gaussian(torch.tensor([0.01]))
    start = likelihood.initial_parameters(target, present)[None]
    expected = stats.norm.logpdf(4.0, loc=3.0, scale=math.sqrt(8.0 / 3.0))
    assert float(likelihood.log_prob(start, torch.tensor([[4.0]]))) == pytest.approx(expected, abs=1e-4)


def test_shared_gaussian_starts_with_the_means() -> None:
    target = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    assert SharedGaussian(2).initial_parameters(target, everywhere(target)).tolist() == [2.0, -3.0]


def test_bernoulli_starts_with_the_smoothed_share() -> None:
    target = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    present = torch.tensor([[True], [True], [True], [False]])
    start = Bernoulli(1, num_rows=100).initial_parameters(target, present)
    assert float(torch.sigmoid(start)) == pytest.approx((2.0 + 0.5) / (3.0 + 1.0), abs=1e-6)


def test_categorical_starts_with_the_smoothed_counts_of_listed_present_values() -> None:
    target = torch.tensor([[0], [0], [1], [-1], [2]])
    present = torch.tensor([[True], [True], [True], [True], [False]])
    start = Categorical([3], torch.tensor([0.1])).initial_parameters(target, present)
    torch.testing.assert_close(start.exp(), torch.tensor([2.5, 1.5, 0.5]) / 4.5)


def test_discretized_logistic_starts_with_the_mean_and_spread_of_the_bytes() -> None:
    target = torch.tensor(np.random.default_rng(0).normal(90.0, 20.0, size=(4000, 1))).float().round()
    likelihood = DiscretizedLogistic(1, mean=128.0, stddev=40.0)
    start = likelihood.initial_parameters(target, everywhere(target)).expand(NUM_DRAWS, 2)
    draws = likelihood.draw(start, noise(NUM_DRAWS, 1, seed=8))
    assert float(draws.mean()) == pytest.approx(float(target.mean()), abs=1.0)
    assert float(draws.std()) == pytest.approx(float(target.std()), rel=0.05)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("parameter", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_gradients_of_real_valued_densities_are_finite(name: str, parameter: float) -> None:
    likelihood = REAL[name]
    parameters = torch.full((3, likelihood.num_parameters), parameter, requires_grad=True)
    target = torch.tensor([[0.0], [10.0], [255.0]])
    nats = likelihood.log_prob(parameters, target)
    (gradient,) = torch.autograd.grad(nats.sum(), parameters)
    assert bool(torch.isfinite(nats).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("logit", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_gradients_of_logits_are_finite(logit: float) -> None:
    for likelihood, target in (
        (Bernoulli(2, num_rows=100), torch.tensor([[0.0, 1.0]])),
        (Categorical([2], torch.tensor([0.01])), torch.tensor([[1]])),
        (Categorical([2], torch.tensor([0.01])), torch.tensor([[-1]])),
    ):
        parameters = torch.tensor([[logit, -logit]], requires_grad=True)
        nats = likelihood.log_prob(parameters, target)
        (gradient,) = torch.autograd.grad(nats.sum(), parameters)
        assert bool(torch.isfinite(nats).all())
        assert bool(torch.isfinite(gradient).all())


def test_uniform_numbers_come_from_normal_ones() -> None:
    uniform = standard_normal_cdf(noise(NUM_DRAWS, 1, seed=9))
    assert stats.kstest(uniform[:, 0].numpy(), stats.uniform().cdf).pvalue > 0.01
    assert standard_normal_cdf(torch.tensor([-40.0, 0.0, 40.0])).tolist() == [0.0, 0.5, 1.0]


def test_log_one_minus_exp_keeps_its_digits_near_0() -> None:
    x = torch.logspace(-12.0, 2.0, 500, requires_grad=True)
    found = log_one_minus_exp(x)
    wanted = torch.log(-torch.expm1(-x.detach().double()))
    torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-6, atol=1e-7)
    torch.autograd.backward(found.sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), 1.0 / torch.expm1(x.detach().double()), rtol=1e-4, atol=1e-7)
