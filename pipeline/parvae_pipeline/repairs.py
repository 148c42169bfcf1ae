"""What training mends by itself: gradients of no use, a code that holds nothing, rows learned by heart.

Here is when, and what is said; the trainer does it.
"""

from __future__ import annotations

from typing import Any

from parvae.errors import DataError
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.diagnosis import MIN_RATE_NATS, OVERFIT_AMBER, overfitting_share
from parvae_pipeline.evaluate import Evaluation
from parvae_pipeline.model import Architecture
from parvae_pipeline.progress import Progress
from parvae_pipeline.schedule import SECOND_FREE_BITS_NATS, SECOND_WARMUP, Schedule

MAX_SKIPS_IN_A_ROW = 50
MAX_ROLLBACKS = 3
MIN_JUDGED_WARMUP_STEPS = 50
"""A code is not called collapsed after a shorter warm-up: it is only young."""
DROPOUT_OF_OVERFITTED = 0.2
"""Held-out nats of the ADBench sets of fewer than 2,000 rows, 20 s on one core, without it and from the best weights on
with it: glass 6.7 and 6.2, wine 28.6 and 21.7, stamps 6.0 and 5.6, breastw 11.5 and 11.3, wdbc 13.9 and 13.4,
ionosphere 34.6 and 30.0, yeast 15.36 and 15.27. From the first step on it costs cardio 3 nats and vertebral 1.3."""
OVERFITTED_EVALUATIONS = 5
"""Evaluations since the best one after which a gap between held-out and training rows counts."""
MIN_SHARE_LEFT = 0.2
"""Of the steps so far, those that must be left to begin again with dropout; with 0.05 pendigits gains nothing."""
SECOND_COURSE = 2
"""Length of what follows, in steps of what went before."""


def count_rollback(progress: Progress) -> None:
    """One more start from earlier weights.

    Raises DataError where there were enough of them.
    """
    progress.num_rollbacks += 1
    if progress.num_rollbacks > MAX_ROLLBACKS:
        raise DataError(
            f"training fails at step {progress.step}: the gradient is not finite, after {MAX_ROLLBACKS} starts "
            "from earlier weights at lower rates; look for extreme values in the data, or lower "
            "train.learning_rate"
        )


def rollback_event(progress: Progress) -> dict[str, Any]:
    """What is said of a start from earlier weights."""
    return {
        "event": "rollback",
        "message": f"repair: {MAX_SKIPS_IN_A_ROW} steps in a row had no usable gradient; went back to the "
        f"averaged weights, with {progress.rate_factor:g} of the learning rate",
    }


def has_collapsed(
    validation: Evaluation, progress: Progress, schedule: Schedule, settings: TrainSettings, architecture: Architecture
) -> bool:
    """Whether the code holds almost nothing after the warm-up, and ever less; with the steps left to repair it.

    A code that holds little but fills is only young.
    """
    if progress.step < schedule.warmup_end or schedule.warmup_steps < MIN_JUDGED_WARMUP_STEPS:
        return False
    is_filling = validation.rate_nats > progress.last_rate_nats
    progress.last_rate_nats = validation.rate_nats
    return (
        validation.rate_nats < MIN_RATE_NATS
        and not is_filling
        and progress.second_warmup_at is None
        and schedule.with_second_warmup(progress.step).warmup_end < progress.total_steps
        and settings.objective == "elbo"
        and architecture.kind == "vae"
    )


def collapse_event(rate_nats: float) -> dict[str, Any]:
    """What is said of a second warm-up."""
    return {
        "event": "collapse",
        "message": f"repair: the code holds {rate_nats:.2f} nats after the warm-up; warming up again, "
        f"{SECOND_WARMUP} times as long and with {SECOND_FREE_BITS_NATS:g} free nats a dimension",
    }


def overfits(validation: Evaluation, train_nats: float, progress: Progress) -> bool:
    """Whether held-out rows have become dearer for a while, and cost a good deal more than training rows."""
    gap_nats = validation.negative_elbo_nats - train_nats
    is_wide = overfitting_share(gap_nats, validation.distortion_nats) > OVERFIT_AMBER
    return is_wide and progress.evaluations_since_best >= OVERFITTED_EVALUATIONS


def may_begin_again(progress: Progress, settings: TrainSettings, architecture: Architecture) -> bool:
    """Whether there is time and reason to train on with dropout; a denoising model has its corruption for that."""
    return (
        not progress.overfitted_at
        and settings.dropout is None
        and architecture.network == "table"
        and not architecture.denoising
        and progress.total_steps - progress.step >= MIN_SHARE_LEFT * progress.step
    )


def overfitting_event(validation: Evaluation, progress: Progress) -> dict[str, Any]:
    """What is said of going on with dropout."""
    return {
        "event": "overfitting",
        "message": f"repair: held-out rows cost {validation.negative_elbo_nats:.2f} nats, and {progress.best_nats:.2f} "
        f"before; went back to those weights and on with a dropout of {DROPOUT_OF_OVERFITTED:g}",
    }
