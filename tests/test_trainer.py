"""The training loop: nothing is lost by a stop, nothing is broken by a bad batch, and the schedule keeps its shape."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import architecture, encoded, people_table
from torch import Tensor

from parvae.errors import DataError
from parvae.rows import Arrays
from parvae.schema import Schema
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.diagnosis import MIN_RATE_NATS
from parvae_pipeline.evaluate import Evaluation, evaluate
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import select
from parvae_pipeline.schedule import (
    EMA_SHARE,
    EVALUATIONS,
    FINAL_RATE_SHARE,
    KL_WARMUP_MAX_STEPS,
    MIN_EVALUATION_STEPS,
    Schedule,
)
from parvae_pipeline.trainer import FIRST_TIMING_STEP, MAX_ROLLBACKS, MAX_SKIPS_IN_A_ROW, MIN_NORMS, Report, Trainer

Rows = tuple[Schema, Arrays, Arrays]
"""A schema, training rows and held-out rows."""


@pytest.fixture(scope="module")
def people() -> Rows:
    """200 training rows, 6 batches an epoch: a stop after 40 steps falls inside an epoch."""
    schema, rows = encoded(people_table(240))
    is_held_out = np.arange(240) >= 200
    return schema, select(rows, ~is_held_out), select(rows, is_held_out)


def trainer_for(
    people: Rows,
    *,
    total_steps: int = 100,
    peak_rate: float = 1e-2,
    warmup_share: float = 0.1,
    deadline_s: float | None = None,
    report: Callable[[Report], None] = lambda report: None,
    save: Callable[[Trainer], None] = lambda trainer: None,
    log_event: Callable[[dict[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> Trainer:
    torch.set_num_threads(1)
    schema, training, held_out = people
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(width=8, latent_size=2))
    model.start_from({name: torch.from_numpy(array) for name, array in training.items()})
    return Trainer(
        model=model,
        reader=MemoryReader(training, batch_size=32, seed=3),
        held_out=held_out,
        settings=TrainSettings(seed=3, **settings),
        schedule=Schedule(total_steps=total_steps, peak_rate=peak_rate, warmup_share=warmup_share, beta=1.0),
        deadline_s=deadline_s,
        report=report,
        save=save,
        log_event=log_event,
    )


def break_gradients(trainer: Trainer, breaks: Callable[[int], bool], *, factor: float = math.nan) -> None:
    """Multiply the gradient by `factor` at the steps that `breaks` names, as an overflow in backward would."""
    for weight in trainer.model.parameters():
        weight.register_hook(lambda gradient: gradient * (factor if breaks(trainer.progress.step) else 1.0))


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state through torch's file format, as a run folder keeps it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


class StopError(Exception):
    """The process ends here."""


def state_after(people: Rows, num_steps: int, **choices: Any) -> dict[str, Any]:
    """The state of a run that was stopped after `num_steps` steps."""
    kept: list[dict[str, Any]] = []

    def save(trainer: Trainer) -> None:
        if trainer.progress.step == num_steps:
            kept.append(stored(trainer.state()))
            raise StopError

    with pytest.raises(StopError):
        trainer_for(people, save=save, checkpoint_every_s=0.0, **choices).fit()
    return kept[0]


def assert_same_weights(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


# Resume


@pytest.mark.parametrize("num_steps", [1, 25, 40, 99])
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(people: Rows, num_steps: int) -> None:
    whole, resumed = trainer_for(people), trainer_for(people)
    whole.fit()
    resumed.load_state(state_after(people, num_steps))
    assert resumed.progress.step == num_steps
    resumed.fit()
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())
    assert_same_weights(resumed.averaged.state_dict(), whole.averaged.state_dict())
    assert resumed.progress.norms == whole.progress.norms


@pytest.mark.parametrize("num_steps", [1, 40, 60])
def test_a_resumed_run_is_evaluated_at_the_same_steps_and_keeps_the_same_best(people: Rows, num_steps: int) -> None:
    evaluated: dict[str, list[int]] = {"whole": [], "resumed": []}
    whole = trainer_for(people, total_steps=160, report=lambda report: evaluated["whole"].append(report.progress.step))
    whole.fit()
    resumed = trainer_for(
        people, total_steps=160, report=lambda report: evaluated["resumed"].append(report.progress.step)
    )
    resumed.load_state(state_after(people, num_steps, total_steps=160))
    resumed.fit()
    assert evaluated["resumed"] == [step for step in evaluated["whole"] if step > num_steps]
    assert resumed.progress.best_nats == whole.progress.best_nats
    assert_same_weights(resumed.best, whole.best)


def test_a_state_is_a_copy_of_nothing_that_training_changes(people: Rows) -> None:
    state = state_after(people, 30)
    weights = {name: value.clone() for name, value in state["model"].items()}
    trainer = trainer_for(people)
    trainer.load_state(state)
    trainer.fit()
    assert_same_weights(state["model"], weights)


def test_another_seed_takes_other_steps(people: Rows) -> None:
    first, second = trainer_for(people, total_steps=5), trainer_for(people, total_steps=5)
    second.settings = dataclasses.replace(second.settings, seed=4)
    first.fit()
    second.fit()
    assert any(
        not torch.equal(ours, theirs)
        for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("seed", [0, 2, 2**31, 2**32, 2**63])
def test_any_seed_that_the_settings_take_can_train(people: Rows, seed: int) -> None:
    trainer = trainer_for(people, total_steps=2)
    trainer.settings = dataclasses.replace(trainer.settings, seed=seed)
    trainer.fit()
    assert trainer.progress.step == 2


def test_a_finished_run_stays_finished(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=30)
    trainer.fit()
    assert trainer.progress.finished
    again = trainer_for(people, total_steps=30)
    again.load_state(stored(trainer.state()))
    again.fit()
    assert again.progress.step == 30
    assert_same_weights(again.model.state_dict(), trainer.model.state_dict())


# Bad batches


def test_a_batch_with_a_broken_gradient_is_skipped_and_counted(people: Rows) -> None:
    trainer = trainer_for(people)
    broken_steps = {3, 4, 50}
    break_gradients(trainer, lambda step: step in broken_steps)
    trainer.fit()
    assert trainer.progress.num_skipped == 3
    assert trainer.progress.skips_in_a_row == 0
    assert trainer.progress.step == 100
    for weights in (trainer.model.state_dict(), trainer.averaged.state_dict(), trainer.best):
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_skipped_step_leaves_the_weights_alone(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    break_gradients(trainer, lambda step: True)
    trainer.fit()
    assert_same_weights(trainer.model.state_dict(), before)
    assert trainer.progress.num_skipped == 5


def test_a_gradient_a_hundred_times_the_usual_is_skipped_once_the_usual_is_known(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=60)
    break_gradients(trainer, lambda step: step in (MIN_NORMS + 5,), factor=1e6)
    trainer.fit()
    assert trainer.progress.num_skipped == 1


def test_a_gradient_some_times_the_usual_is_clipped_not_skipped(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=MIN_NORMS + 10)
    lengths: list[float] = []
    break_gradients(trainer, lambda step: step == MIN_NORMS + 9, factor=15.0)
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: lengths.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None]))
        )
    )
    trainer.fit()
    assert trainer.progress.num_skipped == 0
    median = float(np.median(trainer.progress.norms[:-1]))
    assert trainer.progress.norms[-1] > 3.0 * median, "the last gradient was not large enough to test clipping"
    assert lengths[-1] == pytest.approx(3.0 * median, rel=1e-3)


def test_a_gradient_that_stays_broken_goes_back_to_the_average_at_half_the_rate(people: Rows) -> None:
    trainer = trainer_for(people)
    break_gradients(trainer, lambda step: 30 <= step < 30 + MAX_SKIPS_IN_A_ROW)
    trainer.fit()
    assert trainer.progress.num_rollbacks == 1
    assert trainer.progress.rate_factor == 0.5
    assert trainer.progress.num_skipped == MAX_SKIPS_IN_A_ROW
    assert trainer.progress.step == 100


def test_going_back_takes_the_averaged_weights_and_forgets_the_momentum(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=30 + MAX_SKIPS_IN_A_ROW)
    break_gradients(trainer, lambda step: step >= 30)
    trainer.fit()
    assert trainer.progress.num_rollbacks == 1
    assert_same_weights(trainer.model.state_dict(), trainer.averaged.state_dict())
    assert not trainer.optimizer.state


def test_the_rate_is_halved_at_every_return_and_then_training_gives_up(people: Rows) -> None:
    factors: list[float] = []
    trainer = trainer_for(people, total_steps=1000, save=lambda trainer: factors.append(trainer.progress.rate_factor))
    trainer.settings = dataclasses.replace(trainer.settings, checkpoint_every_s=0.0)
    break_gradients(trainer, lambda step: True)
    with pytest.raises(DataError, match=r"gradient is not finite.*train\.learning_rate"):
        trainer.fit()
    assert trainer.progress.step == (MAX_ROLLBACKS + 1) * MAX_SKIPS_IN_A_ROW - 1
    assert sorted(set(factors), reverse=True) == [1.0, 0.5, 0.25, 0.125]


def test_rare_broken_gradients_never_go_back(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=2 * MAX_SKIPS_IN_A_ROW + 40)
    break_gradients(trainer, lambda step: step % 2 == 0)
    trainer.fit()
    assert trainer.progress.num_skipped == MAX_SKIPS_IN_A_ROW + 20
    assert trainer.progress.num_rollbacks == 0


def test_the_training_loss_is_that_of_the_batches_that_counted(people: Rows) -> None:
    # Every other batch is skipped; their share must not pull the mean towards 0.
    losses: list[float] = []
    for breaks in (lambda step: False, lambda step: step % 2 == 0):
        reports: list[Report] = []
        trainer = trainer_for(people, total_steps=25, peak_rate=1e-6, report=reports.append)
        break_gradients(trainer, breaks)
        trainer.fit()
        losses.append(reports[-1].train_nats)
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


# When it ends


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


# Schedule


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


def test_averaged_weights_follow_the_decay_of_the_schedule(people: Rows) -> None:
    trainer = trainer_for(people, total_steps=3)
    name, parameter = next(iter(trainer.model.named_parameters()))
    history: list[Tensor] = [parameter.detach().clone()]
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, args, kwargs: history.append(parameter.detach().clone())
    )
    trainer.fit()
    average = history[0]
    for step, weights in enumerate(history[1:]):
        decay = trainer.schedule.ema_decay(step)
        average = decay * average + (1.0 - decay) * weights
    torch.testing.assert_close(trainer.averaged.state_dict()[name], average)


def independent_rows() -> Rows:
    """Columns that tell nothing of one another: the best code is empty."""
    rng = np.random.default_rng(0)
    schema, rows = encoded(pa.table({name: rng.normal(size=240) for name in "abc"}))
    is_held_out = np.arange(240) >= 200
    return schema, select(rows, ~is_held_out), select(rows, is_held_out)


def test_a_collapse_is_warmed_up_again_once_and_said() -> None:
    events: list[dict[str, Any]] = []
    reports: list[tuple[int, float, float]] = []
    trainer = trainer_for(
        independent_rows(),
        total_steps=600,
        report=lambda entry: reports.append((entry.progress.step, entry.kl_weight, entry.validation.rate_nats)),
        log_event=events.append,
        patience=100,
    )
    trainer.fit()
    assert [event["event"] for event in events] == ["collapse"]
    assert "the code holds 0." in events[0]["message"]
    repaired_at = trainer.progress.warmup_from
    warmup_steps = trainer.schedule.warmup_steps
    weights = {step: weight for step, weight, _ in reports}
    assert weights[repaired_at] == pytest.approx(1 / warmup_steps)
    in_repair = [weight for step, weight in weights.items() if repaired_at < step < repaired_at + 2 * warmup_steps]
    assert in_repair == sorted(in_repair)
    assert max(in_repair) < 1.0
    after = [weight for step, weight in weights.items() if step >= repaired_at + 2 * warmup_steps]
    assert set(after) == {1.0}
    # What is kept is no worse for it: an (almost) empty code was right.
    assert trainer.best_evaluation is not None
    assert trainer.best_evaluation.rate_nats < MIN_RATE_NATS


def test_a_code_that_holds_something_is_left_alone(people: Rows) -> None:
    events: list[dict[str, Any]] = []
    trainer = trainer_for(people, total_steps=600, log_event=events.append)
    trainer.fit()
    assert trainer.best_evaluation is not None
    assert trainer.best_evaluation.rate_nats > 1.0
    assert events == []
