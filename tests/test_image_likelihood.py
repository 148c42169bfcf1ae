"""The density of images: a probability over whole shades, its median, its mean and its draws."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from parvae.sessions import open_session
from parvae_export.onnx_graph import OPSET
from parvae_pipeline.image_likelihood import UNIFORM_SHARE, LogisticMixture


def random_parameters(mixture: LogisticMixture, num_rows: int, seed: int) -> torch.Tensor:
    return 1.5 * torch.randn(num_rows, mixture.num_parameters, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_the_shades_of_a_grey_pixel_have_probability_one(seed: int) -> None:
    mixture = LogisticMixture(1, 1, mean=90.0, stddev=60.0)
    parameters = random_parameters(mixture, 1, seed).expand(256, -1)
    nats = mixture.log_prob(parameters, torch.arange(256.0).unsqueeze(1))
    assert nats.shape == (256, 1)
    assert float(nats.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 999),
    channels=st.sampled_from([1, 3]),
    stddev=st.floats(0.5, 128.0),
    scales=st.floats(-12.0, 4.0),
    spread=st.floats(0.1, 4.0),
)
def test_float32_keeps_the_nats_of_float64(
    seed: int, channels: int, stddev: float, scales: float, spread: float
) -> None:
    mixture = LogisticMixture(channels, 64, mean=100.0, stddev=stddev)
    generator = torch.Generator().manual_seed(seed)
    parts = [spread * torch.randn(8, size * 64, generator=generator) for size in mixture.sizes]
    parts[2] += scales
    parameters = torch.cat(parts, dim=1).double()
    target = torch.randint(0, 256, (8, channels * 64), generator=generator).double()
    # What one rounding of a location costs, at the narrowest scale: no form of the density could do better.
    values = (target - 100.0) / stddev
    largest = float(parts[1].abs().max() + values.abs().max() * (1.0 + parts[3].abs().max() if channels > 1 else 1.0))
    _, _, log_scales, _ = mixture._split(parameters)
    bound = 2.0**-24 * (60.0 + 2.0 * channels**2 * largest / math.exp(float(log_scales.min())))
    # Rounding the parameters is not an error of the density.
    parameters = parameters.float()
    nats, exact = mixture.log_prob(parameters, target.float()), mixture.log_prob(parameters.double(), target)
    assert float((nats - exact).abs().max()) < bound


def test_wide_components_keep_the_nats_of_float64() -> None:
    mixture = LogisticMixture(1, 256, mean=100.0, stddev=60.0)
    parameters = random_parameters(mixture, 8, 0)
    parameters[:, mixture.sizes[0] + mixture.sizes[1] :] = 9.0  # the widest scale, 440 shades
    shades = torch.arange(256.0).repeat(8, 1)
    exact = mixture.log_prob(parameters.double(), shades.double())
    assert float((mixture.log_prob(parameters, shades) - exact).abs().max()) < 3e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_what_no_component_explains_costs_the_nats_of_the_uniform_share(channels: int) -> None:
    mixture = LogisticMixture(channels, 5, mean=100.0, stddev=10.0)
    parameters = torch.zeros(1, mixture.num_parameters)
    first_scale = 5 * (mixture.sizes[0] + mixture.sizes[1])
    parameters[:, first_scale : first_scale + 5 * mixture.sizes[2]] = -9.0  # all mass on shade 100
    nats = mixture.log_prob(parameters, torch.full((1, channels * 5), 200.0))
    assert torch.allclose(nats, torch.full_like(nats, math.log(UNIFORM_SHARE) - channels * math.log(256.0)))


def test_the_colours_of_a_pixel_have_probability_one_over_coupled_channels() -> None:
    mixture = LogisticMixture(3, 1, mean=128.0, stddev=400.0)  # so wide that most mass lies on 0 and 255
    parameters = random_parameters(mixture, 1, 4)
    total = 0.0
    blue = torch.arange(256.0)
    for red, green in itertools.product((0.0, 100.0, 255.0), repeat=2):
        colours = torch.stack([torch.full_like(blue, red), torch.full_like(blue, green), blue], dim=1)
        total = float(mixture.log_prob(parameters.expand(256, -1), colours).exp().sum())
        pair = LogisticMixture(2, 1, mean=128.0, stddev=400.0)
        weights, locations, scales, couplings = torch.split(parameters, mixture.sizes, dim=1)
        two = [part.reshape(1, -1, 3)[:, :, :2].reshape(1, -1) for part in (locations, scales)]
        kept = torch.cat([weights, *two, couplings[:, : pair.sizes[3]]], dim=1)
        wanted = float(pair.log_prob(kept, torch.tensor([[red, green]])).exp())
        assert total == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_without_noise_a_draw_is_the_median() -> None:
    mixture = LogisticMixture(1, 7, mean=90.0, stddev=60.0)
    parameters = random_parameters(mixture, 5, 1)
    median = mixture.draw(parameters, torch.zeros(5, 7))
    shades = torch.arange(256.0)
    nats = torch.stack([mixture.log_prob(parameters, torch.full((5, 7), float(shade))) for shade in shades])
    cumulative = nats.exp().cumsum(dim=0)
    below = cumulative.gather(0, (median.long() - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
    assert bool((cumulative.gather(0, median.long().unsqueeze(0)).squeeze(0) > 0.5 - 1e-3).all())
    assert bool(((below < 0.5 + 1e-3) | (median == 0)).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_have_the_frequencies_of_the_density(channels: int) -> None:
    mixture = LogisticMixture(channels, 1, mean=90.0, stddev=60.0)
    num_draws = 40_000
    parameters = random_parameters(mixture, 1, 2).expand(num_draws, -1)
    noise = torch.randn(num_draws, channels, generator=torch.Generator().manual_seed(3))
    drawn = mixture.draw(parameters, noise)
    assert bool(((drawn >= 0) & (drawn <= 255) & (drawn == drawn.round())).all())
    nats = -mixture.log_prob(parameters[:1].expand(num_draws, -1), drawn)
    # The entropy of what was drawn, by a density that would be larger for any other frequencies.
    again = mixture.draw(parameters, noise.flip(0))
    other = -mixture.log_prob(parameters, again)
    assert float(nats.mean()) == pytest.approx(float(other.mean()), rel=1e-3)
    if channels == 1:
        found = torch.bincount(drawn.long().flatten(), minlength=256) / num_draws
        wanted = mixture.log_prob(parameters[:256], torch.arange(256.0).unsqueeze(1)).exp().flatten()
        assert float((found - wanted).abs().sum()) < 0.1


def test_the_mean_is_the_expected_shade() -> None:
    mixture = LogisticMixture(1, 3, mean=127.5, stddev=400.0)
    parameters = mixture.initial_parameters(torch.tensor([[120.0, 127.0, 134.0]] * 2), torch.ones(2, 3).bool())
    assert mixture.mean(parameters.unsqueeze(0)).tolist() == [[120.0, 127.0, 134.0]]


def test_extreme_parameters_keep_density_and_gradient_finite() -> None:
    mixture = LogisticMixture(3, 4, mean=90.0, stddev=60.0)
    for size in (1e2, 1e6):
        parameters = (size * random_parameters(mixture, 6, 5)).requires_grad_()
        target = torch.tensor([0.0, 1.0, 254.0, 255.0]).repeat(6, 3)
        nats = mixture.log_prob(parameters, target)
        nats.sum().backward()
        assert bool(torch.isfinite(nats).all())
        assert parameters.grad is not None
        assert bool(torch.isfinite(parameters.grad).all())
        assert bool(torch.isfinite(mixture.draw(parameters.detach(), torch.randn(6, 12))).all())


class LogProb(nn.Module):
    def __init__(self, mixture: LogisticMixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, parameters: Tensor, target: Tensor) -> Tensor:
        return self.mixture.log_prob(parameters, target)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_density_keeps_the_nats_of_shades_that_surprise() -> None:
    mixture = LogisticMixture(1, 256, mean=100.0, stddev=60.0)
    parameters = torch.zeros(1, mixture.num_parameters)
    parameters[:, mixture.sizes[0] + mixture.sizes[1] :] = -2.0  # scales of 8 shades: every shade is some scales away
    target = torch.arange(256.0).unsqueeze(0)
    program = torch.onnx.export(LogProb(mixture), (parameters, target), opset_version=OPSET, dynamo=True, verbose=False)
    assert program is not None
    session = open_session(program.model_proto.SerializeToString(), threads=1)
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (parameters.numpy(), target.numpy()), strict=True)))
    wanted = mixture.log_prob(parameters, target)
    assert float(wanted.min()) < -12.0
    assert float((torch.from_numpy(found) - wanted).abs().max()) < 1e-4
