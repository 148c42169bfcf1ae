"""The course of a run: learning rate, KL weight, averaging, and how often it is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from parvae_pipeline.schedule import (
    EMA_SHARE,
    EVALUATIONS,
    FINAL_RATE_SHARE,
    KL_WARMUP_MAX_STEPS,
    MIN_EVALUATION_STEPS,
    SECOND_FREE_BITS_NATS,
    SECOND_WARMUP,
    Schedule,
)


def schedule_of(*, total_steps: int = 1000, warmup_share: float = 0.1, beta: float = 1.0) -> Schedule:
    return Schedule(total_steps=total_steps, peak_rate=2e-3, warmup_share=warmup_share, beta=beta)


def test_the_rate_rises_to_its_peak_and_ends_at_a_hundredth() -> None:
    schedule = schedule_of()
    rates = [schedule.learning_rate(step) for step in range(1001)]
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(2e-3 / 20.0)
    assert top == 19
    assert rates[top] == pytest.approx(2e-3, rel=1e-2)
    assert all(earlier > later for earlier, later in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[500] == pytest.approx(2e-3 * (0.01 + 0.99 * 0.5))
    assert rates[1000] == pytest.approx(2e-3 * FINAL_RATE_SHARE)


def test_the_rate_stays_at_its_end_beyond_it() -> None:
    schedule = schedule_of()
    assert schedule.learning_rate(5000) == schedule.learning_rate(1000)


def test_the_kl_weight_rises_to_beta_and_stays() -> None:
    schedule = schedule_of(beta=0.5)
    assert schedule.warmup_steps == 100
    assert schedule.kl_weight(0) == pytest.approx(0.005)
    assert schedule.kl_weight(49) == pytest.approx(0.25)
    assert schedule.kl_weight(99) == schedule.kl_weight(999) == 0.5


def test_without_a_warm_up_the_kl_weight_is_beta_at_once() -> None:
    assert schedule_of(warmup_share=0.0).kl_weight(0) == 1.0


def test_the_warm_up_of_a_long_run_is_bounded() -> None:
    assert schedule_of(total_steps=10_000_000).warmup_steps == KL_WARMUP_MAX_STEPS


def test_the_average_forgets_the_first_weights_and_settles_at_its_horizon() -> None:
    schedule = schedule_of(total_steps=10_000)
    decays = [schedule.ema_decay(step) for step in range(10_000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays == sorted(decays)
    assert decays[-1] == pytest.approx(1.0 - 1.0 / (EMA_SHARE * 10_000))
    assert schedule_of(total_steps=10).ema_decay(10_000) == pytest.approx(0.9)


def test_evaluations_are_about_forty_a_run_and_not_too_frequent() -> None:
    assert schedule_of(total_steps=40_000).evaluation_steps == 40_000 // EVALUATIONS
    assert schedule_of(total_steps=50).evaluation_steps == MIN_EVALUATION_STEPS


def test_another_length_changes_the_length_alone() -> None:
    schedule = schedule_of()
    assert schedule.with_total_steps(70) == schedule_of(total_steps=70)
    assert schedule.total_steps == 1000


def test_a_second_warm_up_is_slower_and_has_free_bits_while_it_lasts() -> None:
    schedule = schedule_of().with_second_warmup(300)
    assert schedule.warmup_end == 300 + SECOND_WARMUP * 100
    assert schedule.kl_weight(299) == 1.0
    assert schedule.kl_weight(300) == schedule.kl_weight(301) == pytest.approx(0.01)
    assert schedule.kl_weight(400) == pytest.approx(0.51)
    assert schedule.kl_weight(499) == schedule.kl_weight(999) == 1.0
    free = [schedule.free_bits_nats(step) for step in (0, 299, 300, 499, 500)]
    assert free == [0.0, 0.0, SECOND_FREE_BITS_NATS, SECOND_FREE_BITS_NATS, 0.0]
    assert schedule.with_second_warmup(None) == schedule_of()
