"""Likelihoods of numbers that a Gaussian does not fit: heavy tails, several modes, counts, and values that repeat.

They follow `likelihoods.Likelihood`. Where a target lies on a grid of known step, the density is a probability of the
whole step, and its nats are those of a code.

Letters in shapes: B rows, C values of the block, K components of a mixture, A atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from parvae_pipeline.atoms import AtomTable
from parvae_pipeline.likelihoods import (
    LOG_TWO_PI,
    Likelihood,
    inverse_softplus,
    log_one_minus_exp,
    mean_and_spread,
    standard_normal_cdf,
)

NUM_COMPONENTS = 4
_STIRLING_SHIFT = 8
_IMPOSSIBLE = -1e4
"""A logit whose probability is 0 in float32."""


def log_gamma(x: Tensor) -> Tensor:
    """log of the gamma function for x > 0, in float64 (ONNX has no such operator).

    Stirling's series at x + 8 (Abramowitz and Stegun 6.1.41), brought back by the recurrence gamma(x + 1) = x gamma(x);
    its error is below 1e-10.
    """
    x = x.double()
    product = torch.ones_like(x)
    for shift in range(_STIRLING_SHIFT):
        product = product * (x + shift)
    y = x + _STIRLING_SHIFT
    inverse = 1.0 / y
    square = inverse * inverse
    series = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))
    return (y - 0.5) * torch.log(y) - y + 0.5 * LOG_TWO_PI + series - torch.log(product)


class StudentT(nn.Module):
    """Student's t with a location and a scale for every row and value, and learned degrees of freedom for every value.

    For heavy tails: its logarithm falls with the logarithm of the distance, so that one wild value does not rule the
    gradient. `floor` (C,) bounds the scale from below.
    """

    floor: Tensor

    def __init__(self, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", floor, persistent=False)
        self.raw_freedom = nn.Parameter(torch.full((len(floor),), 3.0))
        self.num_parameters = self.num_noise = 2 * len(floor)

    @property
    def freedom(self) -> Tensor:
        """(C,) degrees of freedom, above 1."""
        return 1.0 + functional.softplus(self.raw_freedom)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        location, scale = self._location_scale(parameters)
        freedom = self.freedom
        normaliser = log_gamma(0.5 * (freedom + 1.0)) - log_gamma(0.5 * freedom)
        constant = normaliser.float() - 0.5 * torch.log(freedom * math.pi)
        squared = ((target - location) / scale).square()
        return constant - scale.log() - 0.5 * (freedom + 1.0) * torch.log1p(squared / freedom)

    def mean(self, parameters: Tensor) -> Tensor:
        return self._location_scale(parameters)[0]

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        location, scale = self._location_scale(parameters)
        # Bailey 1994: sqrt(n (u^(-2/n) - 1)) cos(2 pi v) is Student's t with n degrees of freedom.
        radius_noise, angle_noise = noise.chunk(2, dim=1)
        uniform = standard_normal_cdf(radius_noise).clamp(1e-6, 1.0 - 1e-6)
        radius = torch.sqrt(self.freedom * torch.expm1(-2.0 / self.freedom * torch.log(uniform)))
        return location + scale * radius * torch.cos(2.0 * math.pi * standard_normal_cdf(angle_noise))

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        location, spread = mean_and_spread(target, present)
        return torch.cat([location, inverse_softplus((0.7 * spread - self.floor).clamp(min=1e-2))])

    def _location_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        location, raw_scale = parameters.chunk(2, dim=1)
        return location, self.floor + functional.softplus(raw_scale)


class LogisticMixture(nn.Module):
    """A mixture of four logistic densities for every row and value, for columns with several modes or on a grid.

    `half_steps` (C,) is half the step of the grid, in the unit of the target: the density is then the probability of
    the step around the target (Salimans et al. 2017, PixelCNN++). None means a continuous density. `floor` (C,) bounds
    the scales from below.
    """

    floor: Tensor

    def __init__(self, floor: Tensor, half_steps: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("floor", floor, persistent=False)
        self.register_buffer("half_steps", half_steps, persistent=False)
        self.num_values = len(floor)
        self.num_parameters = 3 * NUM_COMPONENTS * len(floor)
        self.num_noise = 2 * len(floor)

    half_steps: Tensor | None

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_weight, location, scale = self._components(parameters)
        centred = target.unsqueeze(2) - location
        if self.half_steps is None:
            distance = centred.abs() / scale
            log_prob = -distance - 2.0 * functional.softplus(-distance) - scale.log()
        else:
            half_step = self.half_steps.unsqueeze(1)
            upper, lower = (centred + half_step) / scale, (centred - half_step) / scale
            # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), exact for any distance
            width = log_one_minus_exp(2.0 * half_step / scale)
            log_prob = width - functional.softplus(-upper) - functional.softplus(lower)
        return torch.logsumexp(log_weight + log_prob, dim=2)

    def mean(self, parameters: Tensor) -> Tensor:
        log_weight, location, _ = self._components(parameters)
        return (log_weight.exp() * location).sum(dim=2)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        log_weight, location, scale = self._components(parameters)
        which_noise, value_noise = noise.chunk(2, dim=1)
        which = draw_index(log_weight.exp(), standard_normal_cdf(which_noise)).unsqueeze(2)
        uniform = standard_normal_cdf(value_noise).clamp(1e-6, 1.0 - 1e-6)
        standard = torch.log(uniform) - torch.log1p(-uniform)
        return location.gather(2, which).squeeze(2) + scale.gather(2, which).squeeze(2) * standard

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        _, spread = mean_and_spread(target, present)
        shares = (torch.arange(NUM_COMPONENTS) + 0.5) / NUM_COMPONENTS
        location = torch.zeros(self.num_values, NUM_COMPONENTS)
        for index in range(self.num_values):
            values = target[present[:, index], index]
            if len(values):
                location[index] = torch.quantile(values, shares)
        raw_scale = inverse_softplus((spread / NUM_COMPONENTS - self.floor).clamp(min=1e-2))
        return torch.cat(
            [torch.zeros_like(location), location, raw_scale.unsqueeze(1).expand_as(location)], dim=0
        ).flatten()

    def _components(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weight, location and scale, (B, C, K) each."""
        logits, location, raw_scale = parameters.reshape(-1, 3, self.num_values, NUM_COMPONENTS).unbind(1)
        return functional.log_softmax(logits, dim=2), location, self.floor.unsqueeze(1) + functional.softplus(raw_scale)


class NegativeBinomial(nn.Module):
    """Counts with a mean and a dispersion for every row and value: the probability of a whole number from 0 on.

    The target is (count - `means`) / `stddevs`. What is no count has probability 1 / (num_rows + 2). Draws stop at
    `max_count`.
    """

    means: Tensor
    stddevs: Tensor

    def __init__(self, means: Tensor, stddevs: Tensor, *, max_count: int, num_rows: int) -> None:
        super().__init__()
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("stddevs", stddevs, persistent=False)
        self.max_count = max_count
        self.log_other = -math.log(num_rows + 2.0)
        self.num_parameters = 2 * len(means)
        self.num_noise = len(means)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_mean, log_dispersion = self._log_mean_dispersion(parameters)
        value = target * self.stddevs + self.means
        count = torch.round(value)
        is_count = (count >= 0.0) & ((value - count).abs() < 1e-3 * (1.0 + count.abs()))
        count = count.clamp(min=0.0)
        dispersion = log_dispersion.exp()
        ways = log_gamma(count + dispersion) - log_gamma(dispersion) - log_gamma(count + 1.0)
        log_failure = -functional.softplus(log_mean - log_dispersion)
        log_success = -functional.softplus(log_dispersion - log_mean)
        log_prob = ways.float() + dispersion * log_failure + count * log_success
        return torch.where(is_count, log_prob, self.log_other)

    def mean(self, parameters: Tensor) -> Tensor:
        return (self._log_mean_dispersion(parameters)[0].exp() - self.means) / self.stddevs

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        log_mean, log_dispersion = self._log_mean_dispersion(parameters)
        dispersion = log_dispersion.exp()
        count = torch.arange(self.max_count, dtype=parameters.dtype, device=parameters.device)
        # p(k + 1) / p(k) = (k + dispersion) / (k + 1) * success
        log_success = -functional.softplus(log_dispersion - log_mean)
        steps = torch.log(count + dispersion.unsqueeze(2)) - torch.log(count + 1.0) + log_success.unsqueeze(2)
        log_zero = -dispersion * functional.softplus(log_mean - log_dispersion)
        log_prob = torch.cat([log_zero.unsqueeze(2), log_zero.unsqueeze(2) + steps.cumsum(dim=2)], dim=2)
        drawn = draw_index(log_prob.exp(), standard_normal_cdf(noise))
        return (drawn.to(parameters.dtype) - self.means) / self.stddevs

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        location, spread = mean_and_spread(target, present)
        mean = (location * self.stddevs + self.means).clamp(min=1e-2)
        # variance = mean + mean^2 / dispersion
        surplus = ((spread * self.stddevs).square() - mean).clamp(min=0.01 * mean.square())
        return torch.cat([mean.log(), (mean.square() / surplus).log().clamp(-4.0, 4.0)])

    def _log_mean_dispersion(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_mean, log_dispersion = parameters.chunk(2, dim=1)
        return log_mean.clamp(-12.0, 12.0), log_dispersion.clamp(-6.0, 7.0)


class Spiked(nn.Module):
    """Values that take a share of all rows (atoms, such as a zero), each with a probability; `rest` for all others.

    `atoms` (C, A) are in the unit of the target, NaN where a column has fewer. A target is at an atom when it equals
    it. Where `on_grid` (C,), `rest` too gives the atom a probability, and the two add up.
    """

    atoms: Tensor
    on_grid: Tensor
    log_absent: Tensor

    def __init__(self, rest: Likelihood, atoms: Tensor, on_grid: Tensor) -> None:
        super().__init__()
        self.rest = rest
        self.table = AtomTable(atoms)
        is_absent = functional.pad(torch.isnan(atoms), (1, 0))
        self.register_buffer("atoms", torch.nan_to_num(atoms), persistent=False)
        self.register_buffer("log_absent", torch.where(is_absent, _IMPOSSIBLE, 0.0), persistent=False)
        self.register_buffer("on_grid", on_grid, persistent=False)
        self.num_values, self.num_choices = atoms.shape[0], 1 + atoms.shape[1]
        self.num_logits = self.num_values * self.num_choices
        self.num_parameters = self.num_logits + rest.num_parameters
        self.num_noise = self.num_values + rest.num_noise

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_choice = functional.log_softmax(self._logits(parameters), dim=2)
        place = self.table.find(target)
        rest = log_choice[:, :, 0] + self.rest.log_prob(parameters[:, self.num_logits :], target)
        atom = log_choice.gather(2, (place + 1).unsqueeze(2)).squeeze(2)
        atom = torch.where(self.on_grid, torch.logaddexp(atom, rest), atom)
        return torch.where(place >= 0, atom, rest)

    def mean(self, parameters: Tensor) -> Tensor:
        return self._chosen(self._logits(parameters).argmax(dim=2), self.rest.mean(parameters[:, self.num_logits :]))

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        choice_noise, rest_noise = noise[:, : self.num_values], noise[:, self.num_values :]
        probability = torch.softmax(self._logits(parameters), dim=2)
        choice = draw_index(probability, standard_normal_cdf(choice_noise))
        return self._chosen(choice, self.rest.draw(parameters[:, self.num_logits :], rest_noise))

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        place = self.table.find(target)
        elsewhere = present & (place < 0)
        chosen = torch.where(present, place + 1, -1)
        counts = (chosen.unsqueeze(2) == torch.arange(self.num_choices)).sum(dim=0) + 0.5
        logits = torch.log(counts / counts.sum(dim=1, keepdim=True))
        return torch.cat([logits.flatten(), self.rest.initial_parameters(target, elsewhere)])

    def _logits(self, parameters: Tensor) -> Tensor:
        logits = parameters[:, : self.num_logits].reshape(-1, self.num_values, self.num_choices)
        return logits + self.log_absent

    def _chosen(self, choice: Tensor, rest: Tensor) -> Tensor:
        return torch.where(choice > 0, self.table.at(self.atoms, choice - 1), rest)


class ByColumn(nn.Module):
    """Several likelihoods, each for some columns of the block."""

    def __init__(self, parts: Sequence[tuple[Likelihood, Sequence[int]]]) -> None:
        """`parts`: a likelihood and the columns of its values; together they cover every column once."""
        super().__init__()
        self.parts = nn.ModuleList(likelihood for likelihood, _ in parts)  # type: ignore[misc]
        self.likelihoods = tuple(likelihood for likelihood, _ in parts)
        self.columns = tuple(list(columns) for _, columns in parts)
        order = [column for columns in self.columns for column in columns]
        self.order = [order.index(column) for column in range(len(order))]
        self.num_parameters = sum(likelihood.num_parameters for likelihood in self.likelihoods)
        self.num_noise = sum(likelihood.num_noise for likelihood in self.likelihoods)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        each = zip(self.likelihoods, self._split(parameters), self.columns, strict=True)
        return self._joined([part.log_prob(values, target[:, columns]) for part, values, columns in each])

    def mean(self, parameters: Tensor) -> Tensor:
        each = zip(self.likelihoods, self._split(parameters), strict=True)
        return self._joined([part.mean(values) for part, values in each])

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        noises = torch.split(noise, [part.num_noise for part in self.likelihoods], dim=1)
        each = zip(self.likelihoods, self._split(parameters), noises, strict=True)
        return self._joined([part.draw(values, part_noise) for part, values, part_noise in each])

    def initial_parameters(self, target: Tensor, present: Tensor) -> Tensor:
        each = zip(self.likelihoods, self.columns, strict=True)
        return torch.cat([part.initial_parameters(target[:, columns], present[:, columns]) for part, columns in each])

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.split(parameters, [part.num_parameters for part in self.likelihoods], dim=1)

    def _joined(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values, dim=1)[:, self.order]


def draw_index(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B, C) an index drawn from `probabilities` (B, C, K) with `uniform` (B, C) numbers.

    The inverse of the cumulative distribution; the last index takes what rounding leaves.
    """
    cumulative = probabilities.cumsum(dim=2)[:, :, :-1]
    return (uniform.unsqueeze(2) >= cumulative).sum(dim=2)
