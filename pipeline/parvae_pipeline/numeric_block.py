"""Numbers: how numeric columns enter the network, what density they get, and how they leave it in data units.

Letters in shapes: B rows, C columns, F encoder features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parvae.schema import Input, NumericFacts
from parvae_pipeline.block import MAX_ENCODER_UNITS, MAX_STANDARD_UNITS, Block, Presence
from parvae_pipeline.likelihoods import Gaussian

MIN_SCALE = 1e-2
"""Smallest scale of a numeric density, in standard deviations of the column. A tenth of it makes the gradients of a
column that is mostly one value (Adult's capital gain) a hundred times as large, and training skips them."""


class NumericBlock(Block):
    """Numeric columns: standardised in float64, Gaussian with learned scale. NaN and infinities read as null."""

    means: Tensor
    stddevs: Tensor
    minima: Tensor
    maxima: Tensor
    whole: Tensor

    def __init__(self, block: Input, num_rows: int) -> None:
        super().__init__(block)
        facts = [column.facts_as(NumericFacts) for column in block.columns]
        stddevs = torch.tensor([fact.stddev or 1.0 for fact in facts], dtype=torch.float64)
        resolutions = torch.tensor([fact.resolution for fact in facts], dtype=torch.float64)
        # float64: an epoch in seconds standardised in float32 is off by 0.06 standard deviations.
        self.register_buffer("means", torch.tensor([fact.mean for fact in facts], dtype=torch.float64))
        self.register_buffer("stddevs", stddevs)
        self.register_buffer("minima", torch.tensor([fact.minimum for fact in facts], dtype=torch.float64))
        self.register_buffer("maxima", torch.tensor([fact.maximum for fact in facts], dtype=torch.float64))
        self.register_buffer("whole", torch.tensor([column.family == "integer" for column in block.columns]))
        self.presence = Presence(block.columns, num_rows)
        self.likelihood = Gaussian((0.5 * resolutions / stddevs).clamp(min=MIN_SCALE).float())
        self.num_values = len(block.columns)
        self.num_features = self.num_values + self.presence.num_parameters

    def target(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        present = torch.isfinite(raw)
        standardised = (torch.where(present, raw, self.means) - self.means) / self.stddevs
        return standardised.clamp(-MAX_STANDARD_UNITS, MAX_STANDARD_UNITS).float(), present

    def features(self, raw: Tensor) -> Tensor:
        target, present = self.target(raw)
        return torch.cat([target.clamp(-MAX_ENCODER_UNITS, MAX_ENCODER_UNITS), self._indicators(present)], dim=1)

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        restored = values.double() * self.stddevs + self.means
        if drawn:
            restored = torch.minimum(torch.maximum(restored, self.minima), self.maxima)
        return torch.where(self.whole, torch.round(restored), restored)
