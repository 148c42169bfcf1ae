"""The ELBO against closed forms, and every network on every shape.

Letters in shapes: B rows, D columns, L latent dimensions.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from builders import architecture, boolean, category, image, numeric, random_raw, schema_of, vector
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from parvae.errors import SettingError
from parvae.rows import Arrays
from parvae.schema import Schema
from parvae_pipeline import evaluate as evaluation
from parvae_pipeline.evaluate import evaluate
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.networks import NETWORKS, TableDecoder, TableEncoder
from parvae_pipeline.numeric_block import MIN_SCALE
from parvae_pipeline.priors import PRIORS, StandardNormal, gaussian_log_prob

NOISE_SCALE = 0.6
"""sigma of the linear Gaussian model."""
ORTHOGONAL = torch.tensor([[1.2, 0.5], [-0.9, 1.0], [0.8, 0.375]])
"""(D, L) loadings with orthogonal columns: the exact posterior is diagonal."""
OBLIQUE = torch.tensor([[1.0, 0.9], [0.5, 0.3], [-0.3, 0.6]])
LOCATION = torch.tensor([0.3, -0.2, 0.1])
NUM_ROWS = 100_000_000
"""So many that the nats of being present, log(1 - 1 / (NUM_ROWS + 2)), vanish in float32."""


def linear_model(loadings: Tensor, *, posterior_shift: float = 0.0, widening: float = 0.0) -> VariationalAutoencoder:
    """A depth 0 model set to x = W z + location + sigma * eps, with the diagonal posterior that is best for it.

    That posterior has the exact mean, and the variances 1 / diag(M), M = I + W^T W / sigma^2 the exact precision.
    `posterior_shift` is added to its mean and `widening` to its log-variance.
    """
    num_columns, latent_size = loadings.shape
    schema = schema_of(*(numeric(f"x{i}") for i in range(num_columns)), num_rows=NUM_ROWS)
    model = VariationalAutoencoder(schema, architecture(depth=0, latent_size=latent_size))
    encoder, decoder = model.encoder, model.decoder
    assert isinstance(encoder, TableEncoder)
    assert isinstance(decoder, TableDecoder)
    precision = torch.eye(latent_size) + loadings.T @ loadings / NOISE_SCALE**2
    to_mean = torch.linalg.solve(precision, loadings.T) / NOISE_SCALE**2
    log_variance = -torch.log(torch.diagonal(precision)) + widening
    # PosteriorHead bounds the log-variance by 8 tanh((raw + 4) / 8) - 4.
    raw_log_variance = 8.0 * torch.atanh((log_variance + 4.0) / 8.0) - 4.0
    raw_scale = math.log(math.expm1(NOISE_SCALE - MIN_SCALE))
    with torch.no_grad():
        encoder.head.linear.weight.copy_(torch.cat([to_mean, torch.zeros(latent_size, num_columns)]))
        encoder.head.linear.bias.copy_(torch.cat([posterior_shift - to_mean @ LOCATION, raw_log_variance]))
        decoder.head.weight.copy_(torch.cat([loadings, torch.zeros(num_columns, latent_size)]))
        decoder.head.bias.copy_(torch.cat([LOCATION, torch.full((num_columns,), raw_scale)]))
    return model.requires_grad_(False)


def marginal(loadings: Tensor) -> LowRankMultivariateNormal:
    """p(x) = N(location, W W^T + sigma^2 I)."""
    return LowRankMultivariateNormal(LOCATION, loadings, torch.full((len(loadings),), NOISE_SCALE**2))


def observations(num_rows: int, *, seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows: Tensor = marginal(ORTHOGONAL).sample((num_rows,)).double()
    return rows


def noise(num_rows: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


# Closed forms


def test_score_terms_are_the_exact_log_likelihood_of_a_linear_model() -> None:
    x = observations(40)
    terms = linear_model(ORTHOGONAL).score_terms({"numeric": x})
    torch.testing.assert_close(
        -terms.negative_elbo_nats, marginal(ORTHOGONAL).log_prob(x.float()), atol=1e-4, rtol=1e-5
    )


def test_the_sampled_elbo_averages_to_the_exact_log_likelihood() -> None:
    model, x = linear_model(ORTHOGONAL), observations(3)
    num_draws = 20_000
    for row in range(3):
        raw = {"numeric": x[row : row + 1].expand(num_draws, -1)}
        negative_elbos = model.elbo_terms(raw, noise(num_draws, 2, seed=row)).negative_elbo_nats.double()
        standard_error = float(negative_elbos.std()) / math.sqrt(num_draws)
        exact = -float(marginal(ORTHOGONAL).log_prob(x[row].float()))
        assert abs(float(negative_elbos.mean()) - exact) < 4.0 * standard_error + 1e-4


@pytest.mark.parametrize(("shift", "widening"), [(0.5, 0.0), (0.0, 0.7), (-0.3, -0.7)])
def test_the_elbo_of_another_posterior_lacks_exactly_its_divergence_from_the_exact_one(
    shift: float, widening: float
) -> None:
    x = observations(40)
    model = linear_model(ORTHOGONAL, posterior_shift=shift, widening=widening)
    gap = marginal(ORTHOGONAL).log_prob(x.float()) + model.score_terms({"numeric": x}).negative_elbo_nats
    variance = 1.0 / torch.diagonal(torch.eye(2) + ORTHOGONAL.T @ ORTHOGONAL / NOISE_SCALE**2)
    # KL(N(m + shift, v exp(w)) || N(m, v)) over both dimensions.
    expected = 0.5 * (math.exp(widening) - 1.0 - widening + shift**2 / variance).sum()
    torch.testing.assert_close(gap, expected.expand(40), atol=2e-4, rtol=1e-4)
    assert bool((gap > 0.0).all())


def test_a_diagonal_posterior_cannot_reach_a_correlated_one() -> None:
    model, x = linear_model(OBLIQUE), observations(1)
    num_draws = 20_000
    terms = model.elbo_terms({"numeric": x.expand(num_draws, -1)}, noise(num_draws, 2))
    elbos = -terms.negative_elbo_nats.double()
    precision = torch.eye(2) + OBLIQUE.T @ OBLIQUE / NOISE_SCALE**2
    gap = 0.5 * float(torch.log(torch.diagonal(precision)).sum() - torch.logdet(precision))
    exact = float(marginal(OBLIQUE).log_prob(x[0].float()))
    assert gap > 0.01
    assert abs(float(elbos.mean()) - (exact - gap)) < 4.0 * float(elbos.std()) / math.sqrt(num_draws) + 1e-4


def test_the_validation_elbo_is_that_of_the_posterior_not_of_two_of_its_points() -> None:
    # Latent dimensions that interact in the decoder: two antithetic codes miss the cross terms of the log-likelihood.
    model, x = linear_model(OBLIQUE), observations(2000)
    precision = torch.eye(2) + OBLIQUE.T @ OBLIQUE / NOISE_SCALE**2
    gap = 0.5 * float(torch.log(torch.diagonal(precision)).sum() - torch.logdet(precision))
    exact = -float(marginal(OBLIQUE).log_prob(x.float()).double().mean())
    validation = evaluate(model, {"numeric": x.numpy()})
    assert validation.negative_elbo_nats > exact, "a bound on the log-likelihood cannot be better than it"
    assert validation.negative_elbo_nats == pytest.approx(exact + gap, abs=0.05)


def test_samples_follow_the_marginal_of_a_linear_model() -> None:
    model = linear_model(ORTHOGONAL)
    drawn = model.sample(noise(20_000, 2), noise(20_000, model.num_noise, seed=1))["numeric"]
    covariance = ORTHOGONAL @ ORTHOGONAL.T + NOISE_SCALE**2 * torch.eye(3)
    torch.testing.assert_close(drawn.mean(0).float(), LOCATION, atol=0.05, rtol=0.0)
    # Draws are cut at the extremes of the column (here 4 standard deviations of its unit).
    torch.testing.assert_close(torch.cov(drawn.T).float(), covariance, atol=0.1, rtol=0.0)


def test_decode_gives_the_location_of_the_code() -> None:
    model, z = linear_model(ORTHOGONAL), noise(5, 2)
    torch.testing.assert_close(model.decode(z)["numeric"].float(), z @ ORTHOGONAL.T + LOCATION)


def test_elbo_at_zero_noise_has_the_posterior_mean_as_its_code() -> None:
    model, x = linear_model(ORTHOGONAL), observations(4)
    mean, _ = model.posterior({"numeric": x})
    terms = model.elbo_terms({"numeric": x}, torch.zeros(4, 2))
    torch.testing.assert_close(terms.column_nats, model.column_nats({"numeric": x}, mean))


def test_closed_form_kl_is_the_average_of_the_sampled_one() -> None:
    prior = StandardNormal(2)
    mean, log_variance = torch.tensor([[0.8, -1.5]]), torch.tensor([[-1.0, 0.6]])
    z = mean + torch.exp(0.5 * log_variance) * noise(50_000, 2)
    sampled = (gaussian_log_prob(z, mean, log_variance) - prior.log_prob(z)).double()
    exact = float(prior.kl(mean, log_variance, mean))
    assert abs(float(sampled.mean()) - exact) < 4.0 * float(sampled.std()) / math.sqrt(len(sampled))
    assert prior.kl(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0.0


def test_prior_is_torchs_standard_normal() -> None:
    z = noise(10, 4)
    expected = MultivariateNormal(torch.zeros(4), torch.eye(4)).log_prob(z)
    torch.testing.assert_close(StandardNormal(4).log_prob(z), expected)
    assert torch.equal(StandardNormal(4).sample(z), z)


# Score without chance

MIXED = schema_of(
    numeric("a", num_nulls=3),
    numeric("b", arrow_type="int64", resolution=1.0),
    boolean("flag", num_nulls=2),
    category("city", num_nulls=1),
    vector("v", size=3),
    vector("bits", size=4, element="uint8", is_binary=True, mean=0.4, stddev=0.49),
)


def test_score_terms_are_the_same_each_time_and_row_by_row() -> None:
    model = VariationalAutoencoder(MIXED, architecture()).requires_grad_(False)
    raw = random_raw(MIXED, 7)
    first, second = model.score_terms(raw), model.score_terms(raw)
    assert torch.equal(first.column_nats, second.column_nats)
    assert torch.equal(first.kl_nats, second.kl_nats)
    alone = [
        model.score_terms({name: rows[i : i + 1] for name, rows in raw.items()}).negative_elbo_nats for i in range(7)
    ]
    torch.testing.assert_close(first.negative_elbo_nats, torch.cat(alone))


def test_score_terms_do_not_depend_on_the_seed_of_the_weights_generator() -> None:
    torch.manual_seed(1)
    first = VariationalAutoencoder(MIXED, architecture(latent_size=9)).score_signs
    torch.manual_seed(2)
    second = VariationalAutoencoder(MIXED, architecture(latent_size=9)).score_signs
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) == {-1.0, 1.0}


def test_columns_come_in_the_order_of_the_modelled_columns() -> None:
    model = VariationalAutoencoder(MIXED, architecture()).requires_grad_(False)
    raw = random_raw(MIXED, 2)
    changed = {**raw, "vector.v": raw["vector.v"] + 5.0}
    z = noise(2, 3)
    moved = (model.column_nats(changed, z) != model.column_nats(raw, z)).any(dim=0)
    names = [column.name for column, has_moved in zip(MIXED.modelled, moved.tolist(), strict=True) if has_moved]
    assert names == ["v"]


def test_the_negative_elbo_is_the_sum_of_its_terms() -> None:
    model = VariationalAutoencoder(MIXED, architecture()).requires_grad_(False)
    terms = model.elbo_terms(random_raw(MIXED, 4), noise(4, 3))
    assert terms.column_nats.shape == (4, 6)
    torch.testing.assert_close(terms.negative_elbo_nats, terms.column_nats.sum(dim=1) + terms.kl_nats)


# Every network on every shape


def assert_works(schema: Schema, model: VariationalAutoencoder, *, num_rows: int) -> None:
    raw = random_raw(schema, num_rows)
    terms = model.elbo_terms(raw, noise(num_rows, model.latent_size))
    assert terms.negative_elbo_nats.shape == (num_rows,)
    assert terms.column_nats.shape == (num_rows, len(schema.modelled))
    assert bool(torch.isfinite(terms.negative_elbo_nats).all())
    assert bool(torch.isfinite(model.score_terms(raw).negative_elbo_nats).all())
    drawn = model.sample(noise(num_rows, model.prior.num_noise), noise(num_rows, model.num_noise))
    decoded = model.decode(noise(num_rows, model.latent_size))
    for name, rows in raw.items():
        assert drawn[name].shape == decoded[name].shape == rows.shape
        assert drawn[name].dtype == decoded[name].dtype == rows.dtype


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_network_and_prior_gives_finite_terms(network: str, prior: str, depth: int) -> None:
    schema = schema_of(*MIXED.columns, image(height=8, width=8))
    model = VariationalAutoencoder(schema, architecture(network=network, prior=prior, depth=depth))
    assert_works(schema, model, num_rows=3)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("height", "width", "channels"), [(9, 7, 1), (10, 14, 3), (8, 8, 1), (3, 5, 3), (1, 1, 1)])
def test_the_image_network_takes_any_size(height: int, width: int, channels: int, beside: bool) -> None:
    pixels = image(height=height, width=width, channels=channels)
    # The image comes first in the file; the network looks for it last.
    schema = schema_of(pixels, *(MIXED.columns if beside else ()))
    model = VariationalAutoencoder(schema, architecture(network="image"))
    for num_rows in (0, 1, 5):
        assert_works(schema, model, num_rows=num_rows)


def test_two_images_in_one_row_work() -> None:
    schema = schema_of(image("first", height=9, width=7), image("second", height=8, width=6, channels=3))
    for network in NETWORKS:
        assert_works(schema, VariationalAutoencoder(schema, architecture(network=network)), num_rows=3)


def test_the_table_network_takes_a_batch_of_no_rows() -> None:
    assert_works(MIXED, VariationalAutoencoder(MIXED, architecture()), num_rows=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_gets_a_gradient(network: str) -> None:
    schema = schema_of(image(), *MIXED.columns)
    model = VariationalAutoencoder(schema, architecture(network=network))
    model.elbo_terms(random_raw(schema, 8), noise(8, 3)).negative_elbo_nats.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0.0).any()), name


@pytest.mark.parametrize(("choice", "allowed"), [("network", "table"), ("prior", "normal")])
def test_a_wrong_name_is_refused_with_those_there_are(choice: str, allowed: str) -> None:
    with pytest.raises(SettingError, match=rf"'wavelet'.*{allowed}"):
        architecture(**{choice: "wavelet"})


def test_an_image_network_without_an_image_is_refused() -> None:
    with pytest.raises(SettingError, match="no column is an image"):
        VariationalAutoencoder(MIXED, architecture(network="image"))


# Where it starts


@pytest.mark.parametrize("network", NETWORKS)
def test_start_from_makes_the_decoder_begin_with_the_marginals(network: str) -> None:
    schema = schema_of(numeric("a", num_nulls=3), category("city"), image(height=8, width=8))
    num_rows = 400
    raw = random_raw(schema, num_rows)
    generator = torch.Generator().manual_seed(3)
    raw["numeric"] = 2.0 + 0.5 * torch.randn(num_rows, 1, generator=generator, dtype=torch.float64)
    raw["numeric"][:100] = math.nan
    raw["category"] = torch.multinomial(torch.tensor([0.0, 0.0, 0.7, 0.2, 0.1]), num_rows, True, generator=generator)[
        :, None
    ]
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(network=network, latent_size=2))
    model.start_from(raw)
    with torch.no_grad():
        drawn = model.sample(noise(4000, 2), noise(4000, model.num_noise, seed=1))
    numbers = drawn["numeric"][:, 0]
    present = numbers[torch.isfinite(numbers)]
    assert len(present) / 4000 == pytest.approx(0.75, abs=0.06)
    assert float(present.mean()) == pytest.approx(2.0, abs=0.15)
    assert float(present.std()) == pytest.approx(0.5, rel=0.3)
    shares = torch.bincount(drawn["category"][:, 0], minlength=5) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 0.7, 0.2, 0.1]), atol=0.08, rtol=0.0)
    assert float(drawn["image.pixels"].float().mean()) == pytest.approx(
        float(raw["image.pixels"].float().mean()), abs=8
    )


def random_model(num_rows: int) -> tuple[VariationalAutoencoder, Arrays]:
    schema = schema_of(numeric("a"), category("b"), numeric("c"))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(prior="realnvp"))
    return model, {name: rows.numpy() for name, rows in random_raw(schema, num_rows).items()}


def test_the_evaluation_of_few_rows_hangs_little_on_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = random_model(8)
    many = [evaluate(model, rows, seed=seed).negative_elbo_nats for seed in range(12)]
    monkeypatch.setattr(evaluation, "MIN_EVALUATED_CODES", 0)
    pairs = [evaluate(model, rows, seed=seed).negative_elbo_nats for seed in range(12)]
    assert statistics.stdev(many) < 0.4 * statistics.stdev(pairs)
    assert statistics.mean(many) == pytest.approx(statistics.mean(pairs), abs=2.0 * statistics.stdev(pairs) / 12**0.5)


def test_many_rows_are_evaluated_by_one_pair_of_codes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = random_model(256)
    found = evaluate(model, rows)
    monkeypatch.setattr(evaluation, "MIN_EVALUATED_CODES", 0)
    assert evaluate(model, rows) == found
