"""A whole training run in one process: files in, run folder out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from parvae.errors import DataError
from parvae.rows import Arrays
from parvae.schema import Schema
from parvae.storage import Place, write_whole
from parvae_pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from parvae_pipeline.choices import (
    choose_architecture,
    choose_batch_size,
    choose_dropout,
    choose_schedule,
    has_open_size,
    sized_for,
)
from parvae_pipeline.config import RunSettings, TrainSettings
from parvae_pipeline.data_plan import KeptPlan, plan_data
from parvae_pipeline.device import choose_device, keep_freed_memory
from parvae_pipeline.evaluate import evaluate
from parvae_pipeline.finish import finish
from parvae_pipeline.model import Architecture, VariationalAutoencoder
from parvae_pipeline.pace import rows_per_second
from parvae_pipeline.progress import Report
from parvae_pipeline.reader import select
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.split import Split
from parvae_pipeline.strangeness import can_fit, choose_coreset
from parvae_pipeline.trainer import TIME_KEPT_BACK, Trainer, uses_bfloat16
from parvae_pipeline.training_data import default_memory_budget_mb, open_data
from parvae_pipeline.world import ALONE, World

DEFAULT_BUDGET_S = 30 * 60.0
"""Wall time of a run that names neither steps nor a budget; most end earlier."""
START_ROWS = 4_096
"""Training rows that set the decoder's first outputs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is about to be trained, for the user to read before it starts."""

    schema: Schema
    architecture: Architecture
    num_files: int
    num_training_rows: int
    num_held_out_rows: int
    batch_size: int
    is_streamed: bool
    """Whether training rows are read anew every epoch, because they outgrow the memory budget."""
    num_weights: int
    resumed_at_step: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to."""

    folder: Place
    checkpoint_path: Place
    negative_elbo_nats: float
    rate_nats: float
    distortion_nats: float
    num_steps: int
    num_skipped_steps: int
    elapsed_s: float
    num_training_rows: int
    num_held_out_rows: int


def train(
    settings: RunSettings,
    folder: str | Place,
    *,
    announce: Callable[[Plan], None] = lambda plan: None,
    report: Callable[[Report], None] = lambda report: None,
    note: Callable[[str], None] = lambda message: None,
    world: World = ALONE,
    num_threads: int | None = None,
    device: torch.device | None = None,
) -> Result:
    """Train as `settings` say and leave a run folder; the same call again resumes a run that was stopped.

    With several processes each one makes this call; the first of them writes the folder and calls back. `num_threads`
    and `device` are what this process may use where the settings do not say.

    Raises DataError when the data cannot be read or modelled, SettingError when a setting does not fit them.
    """
    started_s = time.monotonic()
    run = RunFolder(folder)
    num_threads = settings.train.threads or num_threads or torch.get_num_threads()
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    pa.set_cpu_count(num_threads)
    device = device or choose_device(settings.train.device)

    world.do_first(lambda: run.require_same(settings))
    with_shapes = not settings.model.denoising
    planned = world.do_first(lambda: plan_data(settings.data, KeptPlan.read(run.plan_path), with_shapes=with_shapes))
    units, schema = planned.units, planned.schema
    split = Split.of(
        schema.num_rows,
        share=settings.data.held_out_share,
        max_rows=settings.data.max_held_out_rows,
        seed=settings.train.seed,
    )
    num_held_out_rows = int(split.count_held_out(units.bounds).sum())
    num_training_rows = schema.num_rows - num_held_out_rows
    state = run.load_state()  # every process reads it: the folder is shared
    # The order of streamed rows follows from the budget, so a run goes on with that of the machine where it began.
    begun_with_mb = None if state is None else state["memory_budget_mb"]
    memory_budget_mb = settings.data.memory_budget_mb or begun_with_mb or default_memory_budget_mb()
    data = open_data(
        units,
        schema,
        split,
        batch_size=max(1, (settings.train.batch_size or choose_batch_size(num_training_rows)) // world.size),
        seed=settings.train.seed,
        memory_budget_mb=memory_budget_mb / world.size,
        num_first_rows=START_ROWS,
        rank=world.rank,
        num_ranks=world.size,
    )

    if state is not None:
        architecture = Architecture(**state["architecture"])
    else:
        architecture = choose_architecture(settings.model, schema)
    model = _first_model(schema, architecture, data.first_rows, settings.train.seed)
    spent_s = 0.0 if state is None else state["progress"]["elapsed_s"]
    deadline_s = _deadline(settings.train, started_s - spent_s)
    if state is None and deadline_s is not None and has_open_size(settings, architecture, num_training_rows):
        rows = select(data.first_rows, slice(0, data.reader.batch_size))
        dtype = torch.bfloat16 if uses_bfloat16(settings.train.precision, device) else torch.float32
        rows_per_s = world.size * rows_per_second(model.to(device), rows, layer_dtype=dtype)
        num_epochs = rows_per_s * (deadline_s - time.monotonic()) / max(1, num_training_rows)
        architecture = sized_for(architecture, world.from_first(num_epochs))
        model = _first_model(schema, architecture, data.first_rows, settings.train.seed)
    world.copy_from_first(list(model.state_dict().values()))

    def save(trainer: Trainer) -> None:
        if world.is_first:
            _write(run, settings, trainer, memory_budget_mb, log_event)

    def log_event(event: dict[str, Any]) -> None:
        run.log({**event, "step": trainer.progress.step})
        note(event["message"])

    def log_and_report(entry: Report) -> None:
        if world.is_first:
            run.log(_record(entry))
            report(entry)

    trainer = Trainer(
        model=model,
        reader=data.reader,
        held_out=data.held_out,
        settings=dataclasses.replace(settings.train, dropout=choose_dropout(settings, architecture)),
        schedule=choose_schedule(settings.train, data.reader, num_held_out_rows, world),
        deadline_s=deadline_s,
        report=log_and_report,
        save=save,
        log_event=lambda event: log_event(event) if world.is_first else None,
        world=world,
        device=device,
    )
    world.do_first(lambda: run.claim(settings))
    if state is not None:
        if state["schema"] != json.dumps(schema.to_json()):
            raise DataError(f"the data changed since the run in {run.path} began; start a new one with another -o")
        trainer.load_state(state)
        if world.is_first:
            run.log({"event": "resume", "step": trainer.progress.step})
    if world.is_first:
        if planned.to_keep is not None:
            write_whole(run.plan_path, planned.to_keep)
        plan = Plan(
            schema=schema,
            architecture=model.architecture,
            num_files=len(units.files),
            num_training_rows=num_training_rows,
            num_held_out_rows=num_held_out_rows,
            batch_size=data.reader.batch_size * world.size,
            is_streamed=data.is_streamed,
            num_weights=sum(parameter.numel() for parameter in model.parameters()),
            resumed_at_step=trainer.progress.step,
        )
        announce(plan)
    if not trainer.progress.finished:
        trainer.fit()
    elif not run.checkpoint_path.exists():
        save(trainer)
    metrics = world.do_first(lambda: read_checkpoint(run.checkpoint_path).metrics)
    return Result(
        folder=run.path,
        checkpoint_path=run.checkpoint_path,
        negative_elbo_nats=metrics["negative_elbo_nats"],
        rate_nats=metrics["rate_nats"],
        distortion_nats=metrics["distortion_nats"],
        num_steps=trainer.progress.step,
        num_skipped_steps=trainer.progress.num_skipped,
        elapsed_s=time.monotonic() - started_s,
        num_training_rows=num_training_rows,
        num_held_out_rows=num_held_out_rows,
    )


def _first_model(schema: Schema, architecture: Architecture, rows: Arrays, seed: int) -> VariationalAutoencoder:
    """The model before the first step, its outputs begun at the marginals of `rows`."""
    torch.manual_seed(seed)  # initial weights; nothing else draws from the global generator
    model = VariationalAutoencoder(schema, architecture)
    model.start_from({name: torch.from_numpy(array) for name, array in rows.items()})
    return model


def _deadline(settings: TrainSettings, started_s: float) -> float | None:
    if settings.budget_s is not None:
        return started_s + settings.budget_s * (1.0 - TIME_KEPT_BACK)
    return started_s + DEFAULT_BUDGET_S if settings.max_steps is None else None


def _write(
    run: RunFolder,
    settings: RunSettings,
    trainer: Trainer,
    memory_budget_mb: float,
    log_event: Callable[[dict[str, Any]], None],
) -> None:
    """The best model so far as a checkpoint, then the state to resume from: a finished state has its checkpoint."""
    held_out, progress = trainer.held_out, trainer.progress
    best = VariationalAutoencoder(trainer.model.schema, trainer.model.architecture)
    best.load_state_dict(trainer.best)
    diagnosis: dict[str, Any] = {}
    evaluation = trainer.best_evaluation
    if progress.finished:
        finished = finish(
            best,
            trainer.reader,
            held_out,
            settings,
            evaluation=evaluation,
            progress=progress,
            deadline_s=trainer.deadline_s,
            device=trainer.device,
        )
        best, evaluation, diagnosis = finished.model, finished.evaluation, finished.diagnosis
        for event in finished.events:
            log_event(event)
    evaluation = evaluation or evaluate(best.to(trainer.device), held_out)
    metrics = {
        **({"diagnosis": diagnosis} if diagnosis else {}),
        "negative_elbo_nats": evaluation.negative_elbo_nats,
        "rate_nats": evaluation.rate_nats,
        "distortion_nats": evaluation.distortion_nats,
        "column_nats": evaluation.column_nats,
        "num_steps": progress.step,
        "num_skipped_steps": progress.num_skipped,
    }
    reservoir = select(held_out, np.arange(min(settings.data.reservoir_rows, len(next(iter(held_out.values()))))))
    reservoir = reservoir if settings.data.reservoir_rows else {}
    coreset = {}
    if trainer.progress.finished and settings.data.reservoir_rows and can_fit(best):
        coreset = choose_coreset(
            trainer.reader, max_rows=settings.data.reservoir_rows, contaminated=settings.train.contaminated
        )
    write_checkpoint(
        run.checkpoint_path,
        Checkpoint(model=best.cpu(), settings=settings, reservoir=reservoir, metrics=metrics, coreset=coreset),
    )
    schema = json.dumps(trainer.model.schema.to_json())
    architecture = dataclasses.asdict(trainer.model.architecture)
    run.save_state(
        {**trainer.state(), "schema": schema, "architecture": architecture, "memory_budget_mb": memory_budget_mb}
    )


def _record(entry: Report) -> dict[str, object]:
    progress, validation = entry.progress, entry.validation
    return {
        "step": progress.step,
        "elapsed_s": round(progress.elapsed_s, 3),
        "total_steps": progress.total_steps,
        "learning_rate": entry.schedule.learning_rate(progress.step) * progress.rate_factor,
        "kl_weight": entry.schedule.kl_weight(progress.step),
        "train_nats": entry.train_nats,
        "validation_nats": validation.negative_elbo_nats,
        "rate_nats": validation.rate_nats,
        "distortion_nats": validation.distortion_nats,
        "column_nats": validation.column_nats,
        "rows_per_s": round(entry.rows_per_s, 1),
        "data_wait_share": round(entry.data_wait_share, 5),
        "num_skipped_steps": progress.num_skipped,
    }
