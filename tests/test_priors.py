"""Priors: densities that integrate what they draw, a mixture that finds its components, a choice that says why."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from builders import architecture, encoded, people_table
from scipy import stats
from torch import Tensor

from parvae_pipeline.diagnosis import describe_code, findings, prior_mismatch_auc
from parvae_pipeline.evaluate import evaluate, with_rate_of
from parvae_pipeline.finish import choose_prior
from parvae_pipeline.mixture import choose_mixture, fit_mixture
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.priors import GaussianMixture

MEANS = torch.tensor([[-4.0, 0.0], [3.0, 3.0], [2.0, -4.0]])
COVARIANCES = torch.tensor([[[1.0, 0.7], [0.7, 1.0]], [[0.3, 0.0], [0.0, 2.0]], [[0.5, -0.2], [-0.2, 0.4]]])
SHARES = torch.tensor([0.5, 0.2, 0.3])


def three_clusters() -> GaussianMixture:
    mixture = GaussianMixture(2, 3)
    mixture.set_components(SHARES, MEANS, COVARIANCES)
    return mixture


def drawn(mixture: GaussianMixture, num_codes: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mixture.sample(torch.randn(num_codes, mixture.num_noise, generator=generator))


def test_the_density_of_a_mixture_is_the_sum_of_its_gaussians() -> None:
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)) * 4.0
    density = sum(
        share * stats.multivariate_normal(mean, covariance).pdf(z.numpy())
        for share, mean, covariance in zip(SHARES.numpy(), MEANS.numpy(), COVARIANCES.numpy(), strict=True)
    )
    np.testing.assert_allclose(three_clusters().log_prob(z), np.log(density), rtol=1e-4, atol=1e-4)


def test_what_a_mixture_draws_has_its_shares_means_and_covariances() -> None:
    z = drawn(three_clusters(), 60_000)
    nearest = torch.cdist(z, MEANS).argmin(dim=1)
    for index in range(3):
        cluster = z[nearest == index]
        assert len(cluster) / len(z) == pytest.approx(float(SHARES[index]), abs=0.02)
        torch.testing.assert_close(cluster.mean(dim=0), MEANS[index], atol=0.06, rtol=0.0)
        torch.testing.assert_close(cluster.T.cov(), COVARIANCES[index], atol=0.12, rtol=0.1)


def test_a_fitted_mixture_costs_what_the_true_one_costs() -> None:
    truth = three_clusters()
    codes, held_out = drawn(truth, 4_000), drawn(truth, 4_000, seed=1)
    chosen = choose_mixture(codes, held_out, seed=0)
    exact = float(truth.log_prob(held_out).mean())
    assert float(chosen.log_prob(held_out).mean()) == pytest.approx(exact, abs=0.05)
    assert float(fit_mixture(codes, 1, seed=0).log_prob(held_out).mean()) < exact - 0.5


def test_codes_of_one_gaussian_get_one_component() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3_000, 4, generator=generator)
    assert choose_mixture(codes[:1_500], codes[1_500:], seed=0).num_components <= 2


@pytest.mark.parametrize("num_codes", [1, 5])
def test_a_mixture_of_few_codes_is_finite(num_codes: int) -> None:
    codes = torch.randn(num_codes, 3, generator=torch.Generator().manual_seed(0))
    mixture = choose_mixture(codes, codes, seed=0)
    assert bool(torch.isfinite(mixture.log_prob(codes)).all())


def untrained(kind: str = "vae") -> tuple[VariationalAutoencoder, dict[str, np.ndarray]]:
    """A model whose encoder puts the codes far from N(0, I): a hole by construction."""
    schema, rows = encoded(people_table(400))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(latent_size=2, kind=kind))
    with torch.no_grad():
        model.encoder.head.linear.bias.copy_(torch.tensor([3.0, -3.0, 0.0, 0.0]))
    return model, {name: np.array(array) for name, array in rows.items()}


def test_the_prior_is_chosen_by_held_out_nats_and_the_choice_says_why() -> None:
    model, rows = untrained()
    before = evaluate(model, rows)
    chosen, event = choose_prior(model, rows, rows, named="auto", seed=0)
    after = evaluate(chosen, rows)
    assert chosen.architecture.prior == event["prior"] == "mixture"
    assert after.rate_nats < before.rate_nats - 5.0
    assert after.distortion_nats == pytest.approx(before.distortion_nats, abs=1e-4)
    assert event["message"].startswith("prior: mixture (the fewest); nats a row of held-out codes: mixture")
    assert event["rate_nats"]["mixture"] < event["rate_nats"]["normal"]


def test_of_few_held_out_rows_priors_are_judged_by_many_codes_each() -> None:
    model, rows = untrained()
    few = {name: array[:4] for name, array in rows.items()}
    rates = [choose_prior(model, rows, few, named="normal", seed=seed)[1]["rate_nats"]["normal"] for seed in range(6)]
    # By one code for each of the rows it would be 1.8.
    assert statistics.stdev(rates) < 0.15
    assert statistics.mean(rates) == pytest.approx(evaluate(model, few).rate_nats, abs=0.15)


@pytest.mark.parametrize("kind", ["vae", "autoencoder"])
def test_another_prior_changes_the_rate_of_an_evaluation_and_nothing_else(kind: str) -> None:
    model, rows = untrained(kind)
    chosen, _ = choose_prior(model, rows, rows, named="mixture", seed=0)
    assert chosen is not model
    assert with_rate_of(evaluate(model, rows), chosen, rows) == evaluate(chosen, rows)


def test_a_mixture_grows_no_further_than_its_time_allows() -> None:
    codes = drawn(three_clusters(), 4_000)
    assert choose_mixture(codes, codes, seed=0, allowed_s=0.0).num_components == 1
    assert choose_mixture(codes, codes, seed=0, allowed_s=1e6).num_components > 1


def test_a_named_prior_stays_whatever_it_costs() -> None:
    model, rows = untrained()
    chosen, event = choose_prior(model, rows, rows, named="normal", seed=0)
    assert chosen is model
    assert "normal (as named)" in event["message"]


def test_a_classifier_sees_a_hole_and_only_a_hole() -> None:
    truth = three_clusters()
    codes = drawn(truth, 1_000)
    assert prior_mismatch_auc(codes, drawn(truth, 1_000, seed=1), seed=0) < 0.58
    assert prior_mismatch_auc(codes, torch.randn(1_000, 2), seed=0) > 0.8


def test_idle_dimensions_carry_no_nats_and_are_not_active() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.cat([torch.randn(5_000, 1, generator=generator), torch.zeros(5_000, 1)], dim=1)
    code = describe_code(mean, torch.tensor([[math.log(0.01), 0.0]]).expand(5_000, -1))
    assert code.num_active == 1
    # log of the total standard deviation over that of the posterior.
    assert code.dimension_nats[0] == pytest.approx(0.5 * math.log(1.01 / 0.01), abs=0.05)
    assert code.dimension_nats[1] == pytest.approx(0.0, abs=1e-6)


HEALTHY = {
    "num_active_units": 8,
    "latent_size": 10,
    "rate_nats": 12.0,
    "prior_auc": 0.55,
    "bound_gap_nats": 1.5,
    "likelihood_samples": 100,
    "likelihood_rows": 64,
    "training_nats": 50.0,
    "training_distortion_nats": 40.0,
    "held_out_nats": 50.5,
    "skipped_share": 0.0,
    "num_steps": 5_000,
    "dearer_nats": 0.5,
    "warmed_up_again": False,
    "began_again": False,
    "learned_on_nats": 0.0,
}
GAP = {"held_out_nats": 58.0}


@pytest.mark.parametrize(
    ("subject", "trouble", "light"),
    [
        ("latent code", {"rate_nats": 0.2}, "red"),
        ("latent code", {"num_active_units": 1}, "amber"),
        ("prior", {"prior_auc": 0.7}, "amber"),
        ("prior", {"prior_auc": 0.95}, "red"),
        ("posterior", {"bound_gap_nats": 6.0}, "amber"),
        ("posterior", {"bound_gap_nats": 11.0}, "red"),
        ("posterior", {"bound_gap_nats": 20.0, "training_nats": 1_500.0, "held_out_nats": 1_500.0}, "amber"),
        ("overfitting", {"held_out_nats": 53.0}, "amber"),
        ("overfitting", {**GAP, "dearer_nats": 6.0}, "red"),
        ("overfitting", GAP, "amber"),
        ("overfitting", {**GAP, "dearer_nats": 6.0, "began_again": True}, "amber"),
        ("overfitting", {**GAP, "dearer_nats": 6.0, "learned_on_nats": 1.5}, "amber"),
        ("stability", {"skipped_share": 0.05}, "amber"),
    ],
)
def test_every_trouble_lights_its_own_lamp(subject: str, trouble: dict[str, float], light: str) -> None:
    found = {finding.subject: finding for finding in findings({**HEALTHY, **trouble})}
    lit = found.pop(subject)
    assert lit.light == light
    assert lit.advice
    assert {(finding.light, finding.advice) for finding in found.values()} == {("green", "")}


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ({"rate_nats": 0.2}, "train longer"),
        ({"rate_nats": 0.2, "warmed_up_again": True}, "warmed up again with free bits"),
        (GAP, "grew hardly dearer to the end"),
        ({**GAP, "dearer_nats": 6.0}, "--set train.dropout=0.2"),
        ({**GAP, "began_again": True}, "on with dropout"),
        ({**GAP, "learned_on_nats": 1.5}, "from drawn rows, which took 1.50 nats off held-out rows; more rows"),
        ({"bound_gap_nats": 20.0}, "that much better than its ELBO"),
        ({"bound_gap_nats": 20.0, "num_steps": 190}, "190 steps are few: a longer --budget"),
        ({"prior_auc": 0.95}, "the prior that held-out codes like best is taken; a longer --budget"),
        ({"prior_auc": 0.95, "dearer_nats": 6.0}, "is taken; more rows"),
    ],
)
def test_a_light_says_what_was_done_or_can_be(trouble: dict[str, float], advice: str) -> None:
    (lit,) = [finding for finding in findings({**HEALTHY, **trouble}) if finding.light != "green"]
    assert advice in lit.advice
