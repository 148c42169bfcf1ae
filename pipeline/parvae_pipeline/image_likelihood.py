"""The density of 8-bit images: a mixture of discretised logistics in every pixel (Salimans et al. 2017, PixelCNN++).

Where a stroke may or may not reach a pixel, its shade has two likely values and none between them: one logistic cannot
say so. The channels of a pixel share their component, and the location of each later channel moves with the values of
those before it.

Letters in shapes: B rows, K components, C channels, N = H * W pixels of a channel; targets (B, C * N), channel first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from parvae_pipeline.likelihoods import standard_normal_cdf

NUM_COMPONENTS = 4
UNIFORM_SHARE = 1e-5
"""Weight of a uniform density over all 256 shades: what no component explains costs about 17 nats, not infinity."""
MIN_SCALE = 0.1
"""Of a component, in shades: 99 % of it lies on one shade. A smaller one gains nothing and multiplies what float32
rounds off its location."""
MAX_LOG_SCALE = 2.0
MIN_PROBABILITY = 1e-37
"""Smallest sum of components whose logarithm is taken, above the numbers that float32 holds in part."""
BISECTIONS = 8
"""Halvings of the range 0 to 255 that leave one shade."""


class LogisticMixture(nn.Module):
    """Shades 0 to 255 of C channels and N pixels; parameters are maps of N values in the order of `_split`."""

    def __init__(self, channels: int, num_pixels: int, *, mean: float, stddev: float) -> None:
        super().__init__()
        self.channels, self.num_pixels = channels, num_pixels
        self.data_mean, self.data_stddev = mean, stddev
        self.half_step = 0.5 / stddev
        self.min_log_scale = math.log(MIN_SCALE / stddev)
        self.log_uniform = math.log(UNIFORM_SHARE) - channels * math.log(256.0)
        self.sizes = [NUM_COMPONENTS * size for size in (1, channels, channels, channels * (channels - 1) // 2)]
        self.num_maps = sum(self.sizes)
        self.num_parameters = self.num_maps * num_pixels
        self.num_noise = channels * num_pixels

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """(B, N) nats of every pixel of `target` (B, C * N), all channels together."""
        log_weights, locations, log_scales, couplings = self._split(parameters)
        shades = target.reshape(-1, self.channels, self.num_pixels)
        values = (shades - self.data_mean) / self.data_stddev
        probability = torch.softmax(log_weights, dim=1)
        for channel in range(self.channels):
            location = self._location(locations, couplings, values, channel)
            inside = self._probability(shades[:, channel], values[:, channel], location, log_scales[:, :, channel])
            probability = probability * inside
        log_mixture = math.log1p(-UNIFORM_SHARE) + torch.log(probability.sum(dim=1).clamp(min=MIN_PROBABILITY))
        # log(exp(a) + exp(b)) = a + softplus(b - a): the exporter takes what is added for 0 where it is below 1e-8.
        return log_mixture + functional.softplus(self.log_uniform - log_mixture)

    def mean(self, parameters: Tensor) -> Tensor:
        """(B, C * N) the expected shade, as a whole number."""
        log_weights, locations, _, couplings = self._split(parameters)
        weights = torch.softmax(log_weights, dim=1)
        expected: list[Tensor] = []
        for channel in range(self.channels):
            location = self._location(locations, couplings, expected, channel)
            # The tails below 0 and above 255 belong to 0 and 255.
            inside = location.clamp(-self.data_mean / self.data_stddev, (255.0 - self.data_mean) / self.data_stddev)
            expected.append((weights * inside).sum(dim=1))
        return torch.round(torch.cat(expected, dim=1) * self.data_stddev + self.data_mean).clamp(0.0, 255.0)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """(B, C * N) one draw from standard normal `noise` (B, C * N); its median where the noise is 0.

        Each channel is the inverse of its cumulative distribution given the channels before it, found by bisection.
        """
        log_weights, locations, log_scales, couplings = self._split(parameters)
        weights = torch.softmax(log_weights, dim=1)
        uniform = standard_normal_cdf(noise).clamp(1e-6, 1.0 - 1e-6).reshape(-1, self.channels, self.num_pixels)
        shades: list[Tensor] = []
        values: list[Tensor] = []
        for channel in range(self.channels):
            location = self._location(locations, couplings, values, channel)
            inverse_scale = torch.exp(-log_scales[:, :, channel])
            low = torch.zeros_like(uniform[:, channel])
            for halving in range(BISECTIONS):
                middle = low + 2.0 ** (BISECTIONS - 1 - halving)
                edge = (middle - 0.5 - self.data_mean) / self.data_stddev
                below = (weights * torch.sigmoid((edge.unsqueeze(1) - location) * inverse_scale)).sum(dim=1)
                low = torch.where(below < uniform[:, channel], middle, low)
            value = (low - self.data_mean) / self.data_stddev
            weights = weights * self._probability(low, value, location, log_scales[:, :, channel])
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
            shades.append(low)
            values.append(value)
        return torch.cat(shades, dim=1)

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        """(num_parameters,) the output bias that spreads the components over the shades of every pixel."""
        values = ((target - self.data_mean) / self.data_stddev).reshape(-1, self.channels, self.num_pixels)
        spread = values.std(dim=0, correction=0).clamp(min=0.05)
        steps = torch.linspace(-1.0, 1.0, NUM_COMPONENTS).reshape(-1, 1, 1)
        locations = values.mean(dim=0) + steps * spread
        # A logistic of scale s has standard deviation s * pi / sqrt(3).
        log_scales = torch.log(0.7 * spread * (math.sqrt(3.0) / math.pi)).expand_as(locations)
        zeros = target.new_zeros(self.num_pixels)
        parts = [zeros.repeat(self.sizes[0]), locations.flatten(), log_scales.flatten(), zeros.repeat(self.sizes[3])]
        return torch.cat(parts)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights (B, K, N), locations and log-scales (B, K, C, N), couplings (B, C (C - 1) / 2 * K, N)."""
        maps = parameters.reshape(-1, self.num_maps, self.num_pixels)
        log_weights, locations, log_scales, couplings = torch.split(maps, self.sizes, dim=1)
        shape = (-1, NUM_COMPONENTS, self.channels, self.num_pixels)
        bounded = log_scales.reshape(shape).clamp(self.min_log_scale, MAX_LOG_SCALE)
        return log_weights, locations.reshape(shape), bounded, couplings

    def _location(self, locations: Tensor, couplings: Tensor, values: list[Tensor] | Tensor, channel: int) -> Tensor:
        """(B, K, N) where the components of a channel lie, given the `values` (B, N) of the channels before it."""
        location = locations[:, :, channel]
        for before in range(channel):
            first = (channel * (channel - 1) // 2 + before) * NUM_COMPONENTS
            value = values[:, before] if isinstance(values, Tensor) else values[before]
            location = location + couplings[:, first : first + NUM_COMPONENTS] * value.unsqueeze(1)
        return location

    def _probability(self, shades: Tensor, values: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        """(B, K, N) the mass of `shades` (B, N) under every component; everything beyond the ends belongs to them.

        sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), where a - b does not depend on the shade:
        nothing cancels, neither far from the location nor where the scale is wide.
        """
        inverse_scale = torch.exp(-log_scale)
        centred = (values.unsqueeze(1) - location) * inverse_scale
        half_width = self.half_step * inverse_scale
        below_upper, above_lower = _sigmoid(half_width + centred), _sigmoid(half_width - centred)
        inside = -below_upper * above_lower * torch.expm1(-2.0 * half_width)
        at_zero, at_top = (shades < 0.5).unsqueeze(1), (shades > 254.5).unsqueeze(1)
        return torch.where(at_zero, below_upper, torch.where(at_top, above_lower, inside))


def _sigmoid(x: Tensor) -> Tensor:
    """The sigmoid, in another form where a graph is exported.

    That of onnxruntime is off by 7 % at 1e-6 and 0 below 1e-8, which is where a pixel that surprises lies.
    """
    return torch.reciprocal(1.0 + torch.exp(-x)) if torch.compiler.is_exporting() else torch.sigmoid(x)
