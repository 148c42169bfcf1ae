"""A trainer over a few rows, for the tests of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from builders import architecture, encoded, people_table

from parvae.rows import Arrays
from parvae.schema import Schema
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.progress import Report
from parvae_pipeline.reader import select
from parvae_pipeline.schedule import (
    Schedule,
)
from parvae_pipeline.trainer import Trainer

Rows = tuple[Schema, Arrays, Arrays]
"""A schema, training rows and held-out rows."""


def people_rows() -> Rows:
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
    shape: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Trainer:
    torch.set_num_threads(1)
    schema, training, held_out = people
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(**{"width": 8, "latent_size": 2, **shape}))
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


def assert_same_weights(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
