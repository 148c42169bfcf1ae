"""Batches whose gradient is broken or huge: skipped, clipped, or gone back from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from trainers import Rows, assert_same_weights, break_gradients, trainer_for

from parvae.errors import DataError
from parvae_pipeline.progress import Report
from parvae_pipeline.repairs import MAX_ROLLBACKS, MAX_SKIPS_IN_A_ROW
from parvae_pipeline.trainer import MIN_NORMS


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
