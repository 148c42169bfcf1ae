"""The training loop. It knows a model, a reader and a place to report; it knows nothing of Ray, of files
or of the command line.

All chance in a step comes from (seed, step, row of the global batch): a run that is stopped and resumed takes the same
steps as one that is not, and n processes take those of one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parvae.rows import Arrays
from parvae_pipeline import repairs
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.corruption import Corruption, draw_corruption
from parvae_pipeline.device import CPU, multiplies_in_bfloat16, placed
from parvae_pipeline.evaluate import Evaluation, evaluate, evaluation_cost
from parvae_pipeline.gradient_sum import gradient_sum
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.networks import set_dropout
from parvae_pipeline.objectives import OBJECTIVES, trimmed_mean
from parvae_pipeline.progress import Progress, Report
from parvae_pipeline.reader import Reader
from parvae_pipeline.schedule import EVALUATIONS, Schedule
from parvae_pipeline.step_noise import seed_of, step_noise
from parvae_pipeline.world import ALONE, World

NORM_HISTORY = 51
"""Gradient norms that the next one is judged by: after half as many the median is of the new ones, where norms have
grown for good."""
SKIP_ABOVE_MEDIAN = 100.0
CLIP_ABOVE_MEDIAN = 3.0
MIN_NORMS = 20
"""Gradient norms seen before any is judged against their median."""
IWAE_SAMPLES = 8
FIRST_TIMING_STEP = 3
"""After it the length of the schedule is fitted to the time, and then again at growing distances. It is early because
rate and KL weight follow the length: a late change would be a jump."""
EVALUATED_ROW_COST = 0.8
"""An evaluated row takes about as long as 0.8 of a trained one."""
TIME_KEPT_BACK = 0.08
"""Share of a time budget kept for the last evaluation, the end of the run (`finish.py`) and writing files."""


class Trainer:
    """Adam on the objective with averaged weights; keeps the best of them by validation ELBO."""

    def __init__(
        self,
        *,
        model: VariationalAutoencoder,
        reader: Reader,
        held_out: Arrays,
        settings: TrainSettings,
        schedule: Schedule,
        deadline_s: float | None,
        report: Callable[[Report], None],
        save: Callable[[Trainer], None],
        log_event: Callable[[dict[str, Any]], None] = lambda event: None,
        world: World = ALONE,
        device: torch.device = CPU,
    ) -> None:
        """`deadline_s` (time.monotonic) is when training must be over; `save` is called when a checkpoint is due, and
        `log_event` with every repair."""
        self.model, self.reader, self.held_out, self.device = model.to(device), reader, held_out, device
        self.settings, self.schedule = settings, schedule
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.best = copy.deepcopy(self.averaged.state_dict())
        self.best_evaluation: Evaluation | None = None
        """That of `best`, once there was one."""
        self._set_dropout(settings.dropout or 0.0)
        model.layer_dtype = torch.bfloat16 if uses_bfloat16(settings.precision, device) else torch.float32
        self._loss = torch.compile(self._objective) if settings.compile else self._objective
        # fused: one pass over the weights, 1.1 times the rows/s of the plain loop on one core.
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=schedule.peak_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.progress = Progress(total_steps=schedule.total_steps, next_evaluation=schedule.evaluation_steps)
        self._max_steps = schedule.total_steps
        self.deadline_s = deadline_s
        self._report, self._save, self._log_event = report, save, log_event
        self._world = world
        self._evaluation_s: float | None = None
        """Time that the last evaluation took."""
        self._parameters: list[Tensor] = list(model.parameters())
        self._averaged_parameters: list[Tensor] = list(self.averaged.parameters())
        self._sum_gradients = gradient_sum(self._parameters, world, model.layer_dtype)
        self._num_samples = settings.num_samples or (IWAE_SAMPLES if settings.objective == "iwae" else 1)

    def fit(self) -> None:
        """Train until the schedule, the time or the patience ends; `best` then holds the weights to keep."""
        progress = self.progress
        started_s = last_saved_s = time.monotonic() - progress.elapsed_s
        last_steps, last_s = progress.step, time.monotonic()
        losses: list[Tensor] = []
        waited_s, asked_s = 0.0, last_s
        next_timing = last_steps + FIRST_TIMING_STEP
        for batch in placed(self.reader.batches(progress.step), self.device):
            waited_s += time.monotonic() - asked_s
            if progress.finished or progress.step >= progress.total_steps:
                break
            losses += self._step(batch)
            progress.step += 1
            now_s = time.monotonic()
            progress.elapsed_s = now_s - started_s
            if self.deadline_s is not None and progress.step >= next_timing:
                self._fit_to_time(now_s, (now_s - last_s) / (progress.step - last_steps))
                progress.next_evaluation = last_steps + self.schedule.evaluation_steps
                next_timing = progress.step + max(1, min(2 * progress.step, progress.total_steps // EVALUATIONS))
            if progress.step >= min(progress.next_evaluation, progress.total_steps):
                num_steps = progress.step - last_steps
                train_nats = float(torch.stack(losses).mean()) if losses else float("nan")
                num_rows = num_steps * self.reader.batch_size * self._world.size
                seconds = now_s - last_s
                self._evaluate(train_nats, rows_per_s=num_rows / seconds, data_wait_share=waited_s / seconds)
                losses, waited_s = [], 0.0
                last_steps, last_s = progress.step, time.monotonic()
                self._evaluation_s = last_s - now_s
                progress.next_evaluation = progress.step + self.schedule.evaluation_steps
            if now_s - last_saved_s >= self.settings.checkpoint_every_s:
                self._save(self)
                last_saved_s = now_s
            asked_s = time.monotonic()
        progress.finished = True
        self._save(self)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, as tensors and plain values."""
        return {
            "progress": dict(vars(self.progress)),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            "best_evaluation": None if self.best_evaluation is None else dataclasses.asdict(self.best_evaluation),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.progress = Progress(**state["progress"])
        self.schedule = self.schedule.with_total_steps(self.progress.total_steps).with_second_warmup(
            self.progress.second_warmup_at
        )
        if self.progress.overfitted_at:
            self._begin_again()
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.best = dict(state["best"])
        found = state["best_evaluation"]
        self.best_evaluation = None if found is None else Evaluation(**found)
        self.optimizer.load_state_dict(state["optimizer"])

    def _step(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """One step; returns its loss, or nothing when it was skipped."""
        progress, schedule = self.progress, self.schedule
        num_rows = len(next(iter(batch.values())))
        num_codes, corruptor = self.model.latent_size, self.model.corruptor
        noise = step_noise(
            seed=self.settings.seed,
            step=progress.step,
            first_row=self._world.rank * num_rows,
            num_rows=num_rows,
            num_samples=self._num_samples,
            latent_size=num_codes + (corruptor.num_noise if corruptor is not None else 0),
        ).to(self.device, non_blocking=True)
        corruption = None if corruptor is None else draw_corruption(noise[0, :, num_codes:])
        if self._dropout:
            torch.manual_seed(seed_of(self.settings.seed, progress.step, self._world.rank, 1))
        # A tensor: torch.compile would compile anew for every other number.
        kl_weight = torch.tensor(schedule.kl_weight(progress.step), device=self.device)
        free_bits_nats = max(self.settings.free_bits_nats, schedule.free_bits_nats(progress.step))
        loss = self._loss(batch, noise[:, :, :num_codes], kl_weight, free_bits_nats, corruption)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / self._world.size)
        self._sum_gradients()
        if not self._clip_or_skip():
            return []
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(progress.step) * progress.rate_factor
        self.optimizer.step()
        with torch.no_grad():  # else each step would hang its node on the graph of the one before, and keep all of them
            torch._foreach_lerp_(self._averaged_parameters, self._parameters, 1.0 - schedule.ema_decay(progress.step))
        return [loss.detach()]

    def _objective(
        self,
        batch: dict[str, Tensor],
        noise: Tensor,
        kl_weight: Tensor,
        free_bits_nats: float,
        corruption: Corruption | None,
    ) -> Tensor:
        # The code of a corrupted row must explain the clean one: the bound of Im et al. 2017.
        rows = OBJECTIVES[self.settings.objective](
            self.model,
            batch,
            self.model.posterior(batch, corruption),
            noise,
            kl_weight=kl_weight,
            free_bits_nats=free_bits_nats,
        )
        return trimmed_mean(rows) if self.settings.contaminated else rows.mean()

    def _clip_or_skip(self) -> bool:
        """Clip the gradient at 3 times the median of recent norms; False when it is beyond 100 times or not finite."""
        progress = self.progress
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        median = statistics.median(progress.norms) if len(progress.norms) >= MIN_NORMS else float("inf")
        if math.isfinite(norm):
            progress.norms = [*progress.norms[1 - NORM_HISTORY :], norm]
        if not norm < SKIP_ABOVE_MEDIAN * median:  # also when it is not a number
            progress.num_skipped += 1
            progress.skips_in_a_row += 1
            if progress.skips_in_a_row >= repairs.MAX_SKIPS_IN_A_ROW:
                self._roll_back()
            return False
        progress.skips_in_a_row = 0
        if norm > CLIP_ABOVE_MEDIAN * median:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(CLIP_ABOVE_MEDIAN * median / norm)
        return True

    def _roll_back(self) -> None:
        """Go back to the averaged weights with half the learning rate: the last ones lead nowhere."""
        progress = self.progress
        repairs.count_rollback(progress)
        self.model.load_state_dict(self.averaged.state_dict())
        self.optimizer.state.clear()
        progress.rate_factor *= 0.5
        progress.skips_in_a_row = 0
        progress.norms = []
        self._log_event(repairs.rollback_event(progress))

    def _repair_collapse(self, rate_nats: float) -> None:
        """Warm up once more, slower and with free bits. Weights with a worse ELBO are not kept, so it can only help:
        where columns tell nothing of one another, an empty code is right."""
        progress = self.progress
        progress.second_warmup_at, progress.evaluations_since_best = progress.step, 0
        self.schedule = self.schedule.with_second_warmup(progress.step)
        self._log_event(repairs.collapse_event(rate_nats))

    def _set_dropout(self, share: float) -> None:
        self._dropout = share
        set_dropout(self.model, share)

    def _repair_overfitting(self, validation: Evaluation) -> None:
        """Go on from the best weights with dropout. Weights with a worse ELBO are not kept, so it can only help."""
        progress = self.progress
        progress.overfitted_at, progress.evaluations_since_best = progress.step, 0
        self.model.load_state_dict(self.best)
        self.averaged.load_state_dict(self.best)
        self.optimizer.state.clear()
        self._begin_again()
        self._log_event(repairs.overfitting_event(validation, progress))

    def _begin_again(self) -> None:
        """Dropout, and a course of the learning rate from here on."""
        begun = self.progress.overfitted_at
        self._set_dropout(repairs.DROPOUT_OF_OVERFITTED)
        self._max_steps = min(self._max_steps, (1 + repairs.SECOND_COURSE) * begun)
        self.progress.total_steps = min(self.progress.total_steps, self._max_steps)
        self.schedule = self.schedule.with_total_steps(self.progress.total_steps).with_new_beginning(begun)

    def _evaluate(self, train_nats: float, *, rows_per_s: float, data_wait_share: float) -> None:
        progress = self.progress
        validation = evaluate(self.averaged, self.held_out, world=self._world)
        progress.last_nats = validation.negative_elbo_nats
        is_best = progress.last_nats < progress.best_nats
        if progress.step >= self.schedule.warmup_end:
            # Patience counts only once the objective no longer moves.
            progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        if is_best:
            progress.best_nats = progress.last_nats
            self.best = copy.deepcopy(self.averaged.state_dict())
            self.best_evaluation = validation
        if repairs.has_collapsed(validation, progress, self.schedule, self.settings, self.model.architecture):
            self._repair_collapse(validation.rate_nats)
        is_out_of_patience = progress.evaluations_since_best >= self.settings.patience
        # Each process knows the loss of its own rows; the first one decides.
        overfits = self._world.from_first(repairs.overfits(validation, train_nats, progress))
        if (is_out_of_patience or overfits) and repairs.may_begin_again(
            progress, self.settings, self.model.architecture
        ):
            self._repair_overfitting(validation)
        elif is_out_of_patience:
            progress.finished = True
        self._report(
            Report(
                progress=progress,
                schedule=self.schedule,
                train_nats=train_nats,
                rows_per_s=rows_per_s,
                data_wait_share=data_wait_share,
                validation=validation,
                is_best=is_best,
            )
        )

    def _fit_to_time(self, now_s: float, seconds_per_step: float) -> None:
        """Set the length of the schedule to what the time that is left allows, the last evaluation included."""
        assert self.deadline_s is not None
        num_evaluated = evaluation_cost(len(next(iter(self.held_out.values())))) / self._world.size
        guess_s = seconds_per_step * EVALUATED_ROW_COST * num_evaluated / self.reader.batch_size
        left_s = self.deadline_s - now_s - (self._evaluation_s or guess_s)
        allowed = self.progress.step + int(left_s / seconds_per_step)
        # Clocks differ between processes; the first one decides.
        total = self._world.from_first(max(self.progress.step, min(self._max_steps, allowed)))
        self.progress.total_steps = total
        self.schedule = self.schedule.with_total_steps(max(total, 1))


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to train in bfloat16: as told, or where the device multiplies in it natively."""
    return multiplies_in_bfloat16(device) if precision == "auto" else precision == "bfloat16"
