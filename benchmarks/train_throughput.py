"""Training throughput on binarised MNIST, one thread: rows a second against a loop written by hand.

    python benchmarks/train_throughput.py

`by_hand` is the loop a user would write: all rows in memory as float32, the same network, batch size and ELBO, plain
Adam, nothing else. `memory` and `stream` are whole runs of `parvae_pipeline.train` from Parquet, with evaluations,
averaged weights, clipping and checkpoints, rows decoded once or read anew every epoch; `memory_fp32` is the former
without bfloat16, to tell what that brings. The time from the first step to the last file written counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import alternating, finish, parser

from parvae_pipeline.config import RunSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import Architecture, VariationalAutoencoder
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.train import train

BATCH_SIZE = 256
ARCHITECTURE = Architecture(network="table", prior="realnvp", latent_size=40, width=512, depth=2, channels=32)
STREAM_BUDGET_MB = 16.0
"""A third of the rows: two windows of 8 MB."""


def main() -> None:
    """Run the contenders in turns and print medians and ratios."""
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    data = options.data / "binmnist" / "train.parquet"
    num_steps, repeats = (20, 1) if options.quick else (400, 3)
    contenders: dict[str, Callable[[], float]] = {
        "memory_rows_per_s": lambda: _ours(data, num_steps),
        "memory_fp32_rows_per_s": lambda: _ours(data, num_steps, precision="float32"),
        "stream_rows_per_s": lambda: _ours(data, num_steps, memory_budget_mb=STREAM_BUDGET_MB),
    }
    if not options.ours_only:
        contenders["by_hand_rows_per_s"] = lambda: _by_hand(data, num_steps)
    figures = alternating(contenders, repeats=repeats)
    if not options.ours_only:
        for name in ("memory", "memory_fp32", "stream"):
            figures[f"{name}_ratio"] = figures[f"{name}_rows_per_s"] / figures["by_hand_rows_per_s"]
    figures["stream_over_memory"] = figures["stream_rows_per_s"] / figures["memory_rows_per_s"]
    finish(figures, as_json=options.json)


def _ours(data: Path, num_steps: int, *, precision: str = "auto", memory_budget_mb: float = 4096.0) -> float:
    document = {
        "data": {"paths": [str(data)], "columns": {"label": "ignored"}, "memory_budget_mb": memory_budget_mb},
        "model": {"width": ARCHITECTURE.width, "latent_size": ARCHITECTURE.latent_size, "prior": ARCHITECTURE.prior},
        "train": {"max_steps": num_steps, "batch_size": BATCH_SIZE, "threads": 1, "precision": precision},
    }
    begun_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            RunSettings.from_mapping(document),
            Path(folder) / "run",
            announce=lambda _: begun_s.append(time.perf_counter()),
        )
        return num_steps * BATCH_SIZE / (time.perf_counter() - begun_s[0])


def _by_hand(data: Path, num_steps: int) -> float:
    table = pq.read_table(data)
    schema = infer_schema(statistics_of(table), overrides={"label": "ignored"}, label=None)
    rows = {name: np.array(array, dtype=np.float32) for name, array in encode(schema, table).items()}
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, ARCHITECTURE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = MemoryReader(rows, batch_size=BATCH_SIZE, seed=0).batches(0)
    started_s = time.perf_counter()
    for _ in range(num_steps):
        batch = next(batches)
        terms = model.elbo_terms(batch, torch.randn(BATCH_SIZE, model.latent_size))
        optimizer.zero_grad()
        torch.autograd.backward(terms.negative_elbo_nats.mean())
        optimizer.step()
    return num_steps * BATCH_SIZE / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
