"""Denoising: rows with values blurred and hidden before the encoder, which must tell what they were.

Letters in shapes: B rows, V values (scalar columns), F encoder features.

A value is corrupted by its level c in [0, 1]: a feature f becomes sqrt(1 - c**2) * f + c * noise, and a hidden value
(c = 1, no noise) becomes 0. The encoder is told the levels, so that clean rows stay clean (Vincent et al. 2008; levels
as an input: the noise-conditioned networks of Song and Ermon 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parvae.errors import SettingError
from parvae.schema import Role
from parvae_pipeline.block import Block

NOISE_FROM, NOISE_TO = 0.05, 1.0
"""Standard deviations of the noise, log-uniform, one for every row; in standard deviations of a column."""
MAX_HIDDEN_SHARE = 0.4
"""Share of a row's values that is hidden, uniform from 0 up to here: 0.2 on average."""
HIDDEN_GROUPS = 8
"""Groups of values that a conditional score hides in turn."""
SCALAR_ROLES = (Role.NUMERIC, Role.BOOLEAN, Role.CATEGORY)


class Corruption(NamedTuple):
    """What is done to some rows."""

    level: Tensor
    """(B or 1, V) from 0 (clean) to 1 (hidden)."""
    noise: Tensor | None
    """(B, V) standard normal, 0 where hidden; None hides only."""


def draw_corruption(noise: Tensor) -> Corruption:
    """A corruption for every row of a training batch, of standard normal `noise` (B, `Corruptor.num_noise`)."""
    num_values = (noise.shape[1] - 2) // 2
    uniform = torch.special.ndtr(noise[:, : num_values + 2])
    log_from, log_to = math.log(NOISE_FROM), math.log(NOISE_TO)
    stddev = torch.exp(log_from + (log_to - log_from) * uniform[:, :1])
    is_hidden = uniform[:, 2:] < MAX_HIDDEN_SHARE * uniform[:, 1:2]
    level = (stddev / torch.sqrt(1.0 + stddev.square())).expand(-1, num_values)
    return Corruption(torch.where(is_hidden, 1.0, level), torch.where(is_hidden, 0.0, noise[:, num_values + 2 :]))


def hidden_groups(num_values: int) -> Tensor:
    """(G, V) levels of 0 and 1: every value is hidden in exactly one of the groups, neighbours in different ones."""
    num_groups = min(HIDDEN_GROUPS, num_values)
    order = torch.randperm(num_values, generator=torch.Generator().manual_seed(0))
    return (torch.arange(num_groups).unsqueeze(1) == (order % num_groups)).float()


class Corruptor(nn.Module):
    """Applies corruptions to the features of scalar columns, and appends the levels to them."""

    value_of_feature: Tensor
    takes_noise: Tensor

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        others = [column for block in blocks if block.role not in SCALAR_ROLES for column in block.columns]
        if others:
            raise SettingError(
                f"model.denoising is true, but column {others[0].name!r} is of role {others[0].role.value}; it works "
                "on numbers, categories and booleans: leave it false, or leave the column out with "
                f"--columns {others[0].name}:ignored"
            )
        values, noisy, first = [], [], 0
        for block in blocks:
            values.append(first + block.feature_columns)
            noisy.append(torch.arange(block.num_features) < (block.num_values if block.role is Role.NUMERIC else 0))
            first += block.num_values
        self.num_values = first
        self.register_buffer("value_of_feature", torch.cat(values), persistent=False)
        self.register_buffer("takes_noise", torch.cat(noisy), persistent=False)

    @property
    def num_noise(self) -> int:
        """Standard normal numbers that the corruption of one row takes."""
        return 2 * self.num_values + 2

    def forward(self, features: Tensor, corruption: Corruption | None) -> Tensor:
        """(B, F) -> (B, F + V)."""
        if corruption is None:
            return torch.cat([features, features.new_zeros(features.shape[0], self.num_values)], dim=1)
        level = corruption.level[:, self.value_of_feature]
        is_hidden = level >= 1.0
        corrupted = torch.where(is_hidden, 0.0, features)
        if corruption.noise is not None:
            noise = corruption.noise[:, self.value_of_feature]
            blurred = torch.sqrt(1.0 - level.square()) * features + level * noise
            corrupted = torch.where(is_hidden | ~self.takes_noise, corrupted, blurred)
        return torch.cat([corrupted, corruption.level.expand(features.shape[0], -1)], dim=1)
