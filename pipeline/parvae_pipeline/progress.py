"""Where a run stands, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from parvae_pipeline.evaluate import Evaluation
from parvae_pipeline.schedule import Schedule


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: with the weights, all that a resumed run must know."""

    step: int = 0
    total_steps: int = 0
    next_evaluation: int = 0
    elapsed_s: float = 0.0
    best_nats: float = float("inf")
    last_nats: float = float("inf")
    """What held-out rows cost at the last evaluation."""
    evaluations_since_best: int = 0
    num_skipped: int = 0
    skips_in_a_row: int = 0
    num_rollbacks: int = 0
    second_warmup_at: int | None = None
    """Step at which a collapse was found."""
    overfitted_at: int = 0
    """Step at which training began again from the best weights, with dropout; 0 before."""
    last_rate_nats: float = 0.0
    """Of the last evaluation after the warm-up; 0 before there was one."""
    rate_factor: float = 1.0
    norms: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the loop says at every evaluation."""

    progress: Progress
    schedule: Schedule
    train_nats: float
    """Mean negative ELBO of the batches since the last report, at their KL weight."""
    rows_per_s: float
    data_wait_share: float
    """Share of the time since the last report that went by waiting for batches."""
    validation: Evaluation
    is_best: bool
