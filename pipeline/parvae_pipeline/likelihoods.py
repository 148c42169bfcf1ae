"""Likelihoods: real log-densities in nats, one object each.

Every object works on a block of C values a row. Its parameters come from the decoder as (B, C * parameters), its target
is (B, C), and all terms come back as (B, C). A draw takes standard normal noise as an argument, so that training,
evaluation and the exported graphs are the same code, and deterministic.

Letters in shapes: B rows, C values of the block, K levels of a category.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

_SERIES_BELOW = 0.02
"""Where the series of `log_one_minus_exp` is as exact as float32."""
LOG_TWO_PI = math.log(2.0 * math.pi)


class Likelihood(Protocol):
    """What a block asks of its density."""

    num_parameters: int
    """Decoder outputs a row, for the whole block."""
    num_noise: int
    """Standard normal numbers that one draw of a row takes."""

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """(B, C) nats of `target` (B, C)."""

    def mean(self, parameters: Tensor) -> Tensor:
        """(B, C) the expected value, or the most probable one where values have no mean."""

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """(B, C) one draw from standard normal `noise` (B, num_noise)."""

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        """(num_parameters,) the output bias that fits `target` (N, C) where `present`, before anything is learned."""


class Gaussian(nn.Module):
    """Gaussian with a mean and a scale for every row and value.

    `floor` (C,) bounds the scale from below: at half the step between distinct values the density of a column that is
    rounded stays finite and honest. Learning the scale makes a KL weight of 1 right (Rybkin et al. 2021, sigma-VAE).
    """

    floor: Tensor

    def __init__(self, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", floor)
        self.num_parameters = 2 * len(floor)
        self.num_noise = len(floor)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        location, scale = self._location_scale(parameters)
        standardised = (target - location) / scale
        return -0.5 * (standardised.square() + LOG_TWO_PI) - scale.log()

    def mean(self, parameters: Tensor) -> Tensor:
        return self._location_scale(parameters)[0]

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        location, scale = self._location_scale(parameters)
        return location + scale * noise

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        location, spread = mean_and_spread(target, present)
        return torch.cat([location, inverse_softplus((spread - self.floor).clamp(min=1e-2))])

    def _location_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        location, raw_scale = parameters.chunk(2, dim=1)
        return location, self.floor + functional.softplus(raw_scale)


class SharedGaussian(nn.Module):
    """Gaussian for embeddings: a mean for every row and value, one learned scale for all of them.

    A scale for every value "often gives suboptimal results" on dense vectors (Rybkin et al. 2021).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_parameters = self.num_noise = size
        self.log_scale = nn.Parameter(torch.zeros(()))

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_scale = self._bounded_log_scale()
        return -0.5 * (((target - parameters) * torch.exp(-log_scale)).square() + LOG_TWO_PI) - log_scale

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return parameters + torch.exp(self._bounded_log_scale()) * noise

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        return mean_and_spread(target, present)[0]

    def _bounded_log_scale(self) -> Tensor:
        # Bounded smoothly from below at exp(-6): a perfect fit must not reach an infinite density.
        return -6.0 + functional.softplus(self.log_scale + 6.0)


class UnitGaussian(nn.Module):
    """Gaussian of one standard deviation of the data: the textbook squared error, half of it, and a constant.

    `mean` and `stddev` are those of the targets.
    """

    def __init__(self, size: int, *, mean: float = 0.0, stddev: float = 1.0) -> None:
        super().__init__()
        self.num_parameters = self.num_noise = size
        self.data_mean, self.data_stddev = mean, stddev

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        return -0.5 * (((target - self.data_mean) / self.data_stddev - parameters).square() + LOG_TWO_PI)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters * self.data_stddev + self.data_mean

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return self.mean(parameters + noise)

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        return mean_and_spread((target - self.data_mean) / self.data_stddev, present)[0]


class CrossEntropy(nn.Module):
    """The textbook binary cross-entropy of values from 0 to `high`; a density only where they are 0 or `high`."""

    def __init__(self, size: int, *, high: float = 1.0) -> None:
        super().__init__()
        self.num_parameters = self.num_noise = size
        self.high = high

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        return target / self.high * parameters - functional.softplus(parameters)

    def mean(self, parameters: Tensor) -> Tensor:
        return self.high * torch.sigmoid(parameters)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        # Its users look at the expected value: what they model is grey, and a draw would be black or white.
        return self.mean(parameters) + 0.0 * noise

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        share = mean_and_spread(target / self.high, present)[0].clamp(1e-3, 1.0 - 1e-3)
        return torch.log(share) - torch.log1p(-share)


def textbook_likelihood(name: str, size: int, moments: tuple[float, float], high: float) -> Likelihood:
    """The likelihood that a setting names (mse, bce) in place of the one that fits the data."""
    return CrossEntropy(size, high=high) if name == "bce" else UnitGaussian(size, mean=moments[0], stddev=moments[1])


class Bernoulli(nn.Module):
    """0 or 1, from a logit for every row and value; anything else has probability 1 / (num_rows + 2)."""

    def __init__(self, size: int, *, num_rows: int) -> None:
        super().__init__()
        self.num_parameters = self.num_noise = size
        self.log_other = -math.log(num_rows + 2.0)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_prob = target * parameters - functional.softplus(parameters)
        return torch.where(target.square() == target, log_prob, self.log_other)

    def mean(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).to(parameters.dtype)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return (standard_normal_cdf(noise) < torch.sigmoid(parameters)).to(parameters.dtype)

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        count = present.sum(0)
        share = ((target * present).sum(0) + 0.5) / (count + 1.0)
        return torch.log(share) - torch.log1p(-share)


class Categorical(nn.Module):
    """One of K_c levels in each of C columns, from logits for every row.

    A value outside the levels (target below 0) has probability `unseen_probability` (C,), which the levels share the
    rest of: it never vanishes from the score.
    """

    log_unseen: Tensor
    log_listed: Tensor

    def __init__(self, num_levels: list[int], unseen_probability: Tensor) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.num_parameters = sum(num_levels)
        self.num_noise = len(num_levels)
        self.register_buffer("log_unseen", unseen_probability.log().float())
        self.register_buffer("log_listed", torch.log1p(-unseen_probability).float())

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        level = target.clamp(min=0)
        terms = [
            functional.log_softmax(logits, dim=1).gather(1, level[:, index : index + 1])
            for index, logits in enumerate(self._split(parameters))
        ]
        return torch.where(target >= 0, torch.cat(terms, dim=1) + self.log_listed, self.log_unseen)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.stack([logits.argmax(dim=1) for logits in self._split(parameters)], dim=1)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        uniform = standard_normal_cdf(noise)
        draws = []
        for index, logits in enumerate(self._split(parameters)):
            # Inverse of the cumulative distribution; the last level takes what rounding leaves.
            cumulative = torch.softmax(logits, dim=1).cumsum(dim=1)[:, :-1]
            draws.append((uniform[:, index : index + 1] >= cumulative).sum(dim=1))
        return torch.stack(draws, dim=1)

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        counts = [
            torch.bincount(target[present[:, index] & (target[:, index] >= 0), index], minlength=levels)
            for index, levels in enumerate(self.num_levels)
        ]
        return torch.cat([torch.log((count + 0.5) / (count.sum() + 0.5 * len(count))) for count in counts])

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.split(parameters, self.num_levels, dim=1)


class DiscretizedLogistic(nn.Module):
    """Whole numbers 0 to 255 as a logistic density integrated over each unit step (Salimans et al. 2017, PixelCNN++).

    Mean and scale for every row and value, in standard deviations of the data. The tails belong to 0 and 255.
    """

    _MAX_LOG_SCALE = 3.0

    def __init__(self, size: int, *, mean: float, stddev: float) -> None:
        super().__init__()
        self.num_parameters = 2 * size
        self.num_noise = size
        self.data_mean, self.data_stddev = mean, stddev
        self.half_step = 0.5 / stddev
        # At a twentieth of half a step all mass is on one number; a smaller scale would only cost precision.
        self.min_log_scale = math.log(self.half_step / 20.0)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        location, log_scale = self._location_log_scale(parameters)
        centred = (target - self.data_mean) / self.data_stddev - location
        inverse_scale = torch.exp(-log_scale)
        upper = inverse_scale * (centred + self.half_step)
        lower = inverse_scale * (centred - self.half_step)
        # log(sigmoid(upper) - sigmoid(lower)), exact for any distance from the mean:
        # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a))
        width = 2.0 * self.half_step * inverse_scale
        log_upper, log_above = -functional.softplus(-upper), -functional.softplus(lower)
        inside = log_upper + log_above + log_one_minus_exp(width)
        return torch.where(target < 0.5, log_upper, torch.where(target > 254.5, log_above, inside))

    def mean(self, parameters: Tensor) -> Tensor:
        location, _ = self._location_log_scale(parameters)
        return self._to_step(location)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        location, log_scale = self._location_log_scale(parameters)
        uniform = standard_normal_cdf(noise).clamp(1e-6, 1.0 - 1e-6)
        return self._to_step(location + torch.exp(log_scale) * (torch.log(uniform) - torch.log1p(-uniform)))

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        location, spread = mean_and_spread((target - self.data_mean) / self.data_stddev, present)
        # A logistic of scale s has standard deviation s * pi / sqrt(3).
        log_scale = torch.log(spread.clamp(min=0.05) * (math.sqrt(3.0) / math.pi))
        return torch.cat([location, log_scale])

    def _location_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        location, log_scale = parameters.chunk(2, dim=1)
        return location, log_scale.clamp(self.min_log_scale, self._MAX_LOG_SCALE)

    def _to_step(self, value: Tensor) -> Tensor:
        return torch.round(value * self.data_stddev + self.data_mean).clamp(0.0, 255.0)


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0: a series near 0, for ONNX has no expm1, and 1 - exp(-x) loses all digits there."""
    near, far = x.clamp(max=_SERIES_BELOW), x.clamp(min=_SERIES_BELOW)
    series = torch.log(near) - near * (0.5 - near / 24.0)
    return torch.where(x < _SERIES_BELOW, series, torch.log(-torch.expm1(-far)))


def standard_normal_cdf(noise: Tensor) -> Tensor:
    """Uniform numbers in [0, 1] from standard normal ones."""
    return 0.5 * (1.0 + torch.erf(noise / math.sqrt(2.0)))


def mean_and_spread(target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) mean and standard deviation of `target` (N, C) where `present`."""
    weight = present.to(target.dtype)
    count = weight.sum(0).clamp(min=1.0)
    mean = (target * weight).sum(0) / count
    variance = ((target - mean).square() * weight).sum(0) / count
    return mean, variance.sqrt()


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with softplus(x) = value > 0."""
    return value + log_one_minus_exp(value)
