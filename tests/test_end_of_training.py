"""When training ends, and which weights it leaves: patience, deadlines, the best evaluation."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from torch import Tensor
from trainers import Rows, trainer_for

from parvae_pipeline.evaluate import Evaluation, evaluate
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.progress import Report
from parvae_pipeline.schedule import (
    FINAL_RATE_SHARE,
)
from parvae_pipeline.trainer import FIRST_TIMING_STEP


def reports_of(trainer_reports: list[tuple[int, float, bool]]) -> Callable[[Report], None]:
    def keep(report: Report) -> None:
        trainer_reports.append((report.progress.step, report.validation.negative_elbo_nats, report.is_best))

    return keep


def test_best_weights_are_those_of_the_best_evaluation(people: Rows) -> None:
    seen: list[tuple[int, float, bool]] = []
    trainer = trainer_for(people, total_steps=300, peak_rate=0.05, report=reports_of(seen))
    trainer.fit()
    model = VariationalAutoencoder(people[0], trainer.model.architecture)
    model.load_state_dict(trainer.best)
    best = min(nats for _, nats, _ in seen)
    assert evaluate(model, people[2]).negative_elbo_nats == best
    assert trainer.progress.best_nats == best
    assert [nats for _, nats, is_best in seen if is_best][-1] == best


def test_patience_ends_a_run_that_gets_no_better_after_the_warm_up(people: Rows) -> None:
    seen: list[tuple[int, float, bool]] = []
    # So high a rate that the model gets worse again soon.
    trainer = trainer_for(
        people, total_steps=2000, peak_rate=0.2, patience=2, warmup_share=0.1, report=reports_of(seen)
    )
    trainer.fit()
    steps = [step for step, _, _ in seen]
    assert trainer.progress.finished
    assert steps[-1] < 2000
    assert [is_best for _, _, is_best in seen][-2:] == [False, False]
    assert steps[-2] >= 200, "both evaluations that ended it came after the warm-up"


def test_patience_waits_for_the_end_of_the_warm_up(people: Rows) -> None:
    seen: list[tuple[int, float, bool]] = []
    trainer = trainer_for(
        people, total_steps=400, peak_rate=1e-12, patience=1, warmup_share=1.0, report=reports_of(seen)
    )
    trainer.fit()
    assert len([step for step, _, is_best in seen if not is_best and step < 400]) >= 1
    assert trainer.progress.step == 400


def test_a_deadline_that_is_over_shortens_the_schedule_to_what_was_done(people: Rows) -> None:
    seen: list[tuple[int, float, bool]] = []
    trainer = trainer_for(people, total_steps=100_000, deadline_s=time.monotonic() - 1.0, report=reports_of(seen))
    trainer.fit()
    assert trainer.progress.step < 100_000
    assert trainer.progress.total_steps == trainer.progress.step <= FIRST_TIMING_STEP
    assert trainer.schedule.total_steps == trainer.progress.step
    assert seen[-1][0] == trainer.progress.step
    assert math.isfinite(trainer.progress.best_nats)


def test_a_deadline_shortens_the_schedule_before_rate_and_kl_weight_could_jump(
    people: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("parvae_pipeline.trainer.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    trainer = trainer_for(people, total_steps=100_000, deadline_s=300.0)
    step, kl_weights = trainer._step, []

    def recorded(batch: dict[str, Tensor]) -> list[Tensor]:
        kl_weights.append(trainer.schedule.kl_weight(trainer.progress.step))
        return step(batch)

    monkeypatch.setattr(trainer, "_step", recorded)
    trainer.fit()
    assert 60 < len(kl_weights) <= 100  # three looks at the clock a step
    rises = np.diff(kl_weights)
    assert kl_weights[-1] == 1.0
    assert rises.max() < (FIRST_TIMING_STEP + 1.5) / trainer.schedule.warmup_steps
    assert rises.min() > -0.5 / trainer.schedule.warmup_steps


def test_a_run_ends_in_time_on_a_machine_that_becomes_slower(people: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("parvae_pipeline.trainer.time", SimpleNamespace(monotonic=lambda: now_s))
    trainer = trainer_for(people, total_steps=100_000, deadline_s=200.0)
    step, rates = trainer._step, []

    def timed(batch: dict[str, Tensor]) -> list[Tensor]:
        nonlocal now_s
        now_s += 1.0 if trainer.progress.step < 100 else 5.0
        rates.append(trainer.schedule.learning_rate(trainer.progress.step))
        return step(batch)

    monkeypatch.setattr(trainer, "_step", timed)
    trainer.fit()
    assert 160.0 < now_s <= 205.0
    assert rates[-1] < 0.1 * max(rates), "the schedule came to its end"


def test_a_deadline_far_away_leaves_the_schedule_as_it_is(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=60, deadline_s=time.monotonic() + 1e6)
    trainer.fit()
    assert trainer.progress.step == trainer.progress.total_steps == 60


def test_a_deadline_never_lengthens_the_schedule_beyond_its_first_length(people: Rows) -> None:
    lengths: list[int] = []
    trainer = trainer_for(
        people,
        total_steps=5000,
        deadline_s=time.monotonic() + 1.0,
        report=lambda report: lengths.append(report.progress.total_steps),
    )
    trainer.fit()
    assert all(length <= 5000 for length in lengths)
    assert trainer.progress.step == trainer.progress.total_steps
    assert trainer.schedule.learning_rate(trainer.progress.step) == pytest.approx(1e-2 * FINAL_RATE_SHARE)


def test_the_last_step_is_evaluated(people: Rows) -> None:
    seen: list[tuple[int, float, bool]] = []
    trainer_for(people, total_steps=70, report=reports_of(seen)).fit()
    assert seen[-1][0] == 70


def test_a_report_says_where_the_run_is(people: Rows) -> None:
    reports: list[Report] = []
    trainer_for(people, total_steps=25, report=reports.append).fit()
    (report,) = reports
    assert isinstance(report.validation, Evaluation)
    assert report.is_best
    assert math.isfinite(report.train_nats)
    assert report.rows_per_s > 0.0
    assert report.validation.negative_elbo_nats == pytest.approx(
        report.validation.rate_nats + report.validation.distortion_nats
    )
    assert set(report.validation.column_nats) == {"height", "weight", "city", "member", "embedding"}


def test_training_makes_the_held_out_rows_likelier(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=200)
    start = evaluate(trainer.averaged, people[2]).negative_elbo_nats
    trainer.fit()
    assert trainer.progress.best_nats < start - 0.5
