"""Training with the trainer of pythae (group `bench`), for a number of epochs or some CPU seconds, without its reports.

Not a benchmark: those that have pythae for a peer share it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class TimeIsUp(Exception):  # noqa: N818 - it ends a training, it is no error
    """Ends a training: the trainer counts epochs and knows no clock."""


def train(
    model: Any, rows: Tensor, *, batch_size: int, num_epochs: int = 10_000, allowed_cpu_s: float = math.inf
) -> float:
    """Train a model of pythae on rows; returns the wall time in seconds. Its own Adam at a rate of 1e-3."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Clock(TrainingCallback):  # type: ignore[misc]
        def on_train_step_end(self, *_: Any, **__: Any) -> None:
            if time.process_time() - begun_cpu_s > allowed_cpu_s:
                raise TimeIsUp

    with tempfile.TemporaryDirectory() as folder, _silence():
        trainer = BaseTrainer(
            model=model,
            train_dataset=BaseDataset(rows, torch.zeros(len(rows))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=num_epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=1e-3,
                no_cuda=True,
            ),
            callbacks=[Clock()],
        )
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        with contextlib.suppress(TimeIsUp):
            trainer.train()
        return time.perf_counter() - begun_s


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The trainer reports on stdout, stderr and its logger; a benchmark prints figures."""
    logging.disable(logging.INFO)
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
    logging.disable(logging.NOTSET)
