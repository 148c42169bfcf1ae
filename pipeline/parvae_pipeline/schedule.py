"""The course of a run: how many steps, how fast, and what changes on the way."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

KL_WARMUP_MAX_STEPS = 10_000
RATE_WARMUP_SHARE = 0.02
FINAL_RATE_SHARE = 0.01
EMA_SHARE = 0.015
"""Horizon of the averaged weights, as a share of all steps."""
EVALUATIONS = 40
MIN_EVALUATION_STEPS = 25
SECOND_WARMUP = 2
"""Length of a second warm-up, in those of the first."""
SECOND_FREE_BITS_NATS = 0.1
"""Rate of every latent dimension that costs nothing while it lasts (Kingma et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that depends on the step. Times change its length, and a collapse begins a second KL warm-up."""

    total_steps: int
    peak_rate: float
    warmup_share: float
    beta: float
    min_evaluation_steps: int = MIN_EVALUATION_STEPS
    """Steps between evaluations where the run is short."""
    second_warmup_at: int | None = None
    """Step at which the KL weight begins at 0 once more."""
    begun_again_at: int = 0
    """Step from which on the learning rate takes its course, anew."""

    @property
    def warmup_steps(self) -> int:
        """Steps over which the KL weight rises."""
        return min(KL_WARMUP_MAX_STEPS, round(self.warmup_share * self.total_steps))

    @property
    def warmup_end(self) -> int:
        """Step from which on the objective no longer moves."""
        if self.second_warmup_at is None:
            return self.warmup_steps
        return self.second_warmup_at + SECOND_WARMUP * self.warmup_steps

    @property
    def evaluation_steps(self) -> int:
        """Steps between evaluations."""
        return max(self.min_evaluation_steps, self.total_steps // EVALUATIONS)

    def learning_rate(self, step: int) -> float:
        """Linear rise, then cosine to a hundredth of the peak."""
        step, total_steps = step - self.begun_again_at, self.total_steps - self.begun_again_at
        rise = min(1.0, (step + 1) / max(1.0, RATE_WARMUP_SHARE * total_steps))
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))
        return self.peak_rate * rise * (FINAL_RATE_SHARE + (1.0 - FINAL_RATE_SHARE) * fall)

    def kl_weight(self, step: int) -> float:
        """Linear from 0 to beta over the warm-up (Bowman et al. 2016; Sonderby et al. 2016)."""
        if self.second_warmup_at is not None and step >= self.second_warmup_at:
            step = (step - self.second_warmup_at) // SECOND_WARMUP
        return self.beta * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def free_bits_nats(self, step: int) -> float:
        """Rate of every latent dimension that costs nothing because of a second warm-up."""
        begun = self.second_warmup_at is not None and step >= self.second_warmup_at
        return SECOND_FREE_BITS_NATS if begun and step < self.warmup_end else 0.0

    def ema_decay(self, step: int) -> float:
        """Decay of the averaged weights, lower at the start so that they forget the initial ones."""
        horizon = max(10.0, EMA_SHARE * self.total_steps)
        return min(1.0 - 1.0 / horizon, (1.0 + step) / (10.0 + step))

    def with_total_steps(self, total_steps: int) -> Schedule:
        """The same course, longer or shorter."""
        return dataclasses.replace(self, total_steps=total_steps)

    def with_second_warmup(self, step: int | None) -> Schedule:
        """The same course, with the KL weight at 0 once more at `step`."""
        return dataclasses.replace(self, second_warmup_at=step)

    def with_new_beginning(self, step: int) -> Schedule:
        """The same course, with that of the learning rate from `step` on."""
        return dataclasses.replace(self, begun_again_at=step)
