"""Dates and timestamps: numbers that also tell the encoder where they lie in the day, the week and the year.

Letters in shapes: B rows, C columns, F encoder features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from parvae.schema import Input
from parvae_pipeline.numeric_block import NumericBlock

DAY_S = 86_400.0
PERIODS_S = (DAY_S, 7.0 * DAY_S, 365.2425 * DAY_S)
MAX_SECONDS = 2.0**40
"""35,000 years, and a number that float32 holds exactly, as the exporter writes it."""


class TimestampBlock(NumericBlock):
    """Seconds since 1970 with the density of numbers; sine and cosine of day, week and year beside them."""

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block, num_rows, likelihood)
        self.num_features += 2 * len(PERIODS_S) * self.num_values

    def features(self, raw: Tensor) -> Tensor:
        present = torch.isfinite(raw)
        seconds = torch.where(present, raw, 0.0).clamp(-MAX_SECONDS, MAX_SECONDS)
        parts = [super().features(raw)]
        for period_s in PERIODS_S:
            turns = seconds / period_s
            angle = (2.0 * math.pi * (turns - torch.floor(turns))).float()
            parts += [torch.where(present, torch.sin(angle), 0.0), torch.where(present, torch.cos(angle), 0.0)]
        return torch.cat(parts, dim=1)
