"""Training throughput on binarised MNIST, one thread a process: rows a second against a loop written by hand.

    python benchmarks/train_throughput.py

`by_hand` is the loop a user would write: all rows in memory as float32, the same network and batch size, cross entropy
and closed-form KL, plain Adam, nothing else. `pythae` is the trainer of that library (group `bench`) on the same
network, without validation. `memory` and `stream` are whole runs of `parvae_pipeline.train` from Parquet, with
evaluations, averaged weights, clipping and checkpoints, rows decoded once or read anew each epoch (by a thread);
`memory_fp32` is the former without bfloat16, to tell what that brings. The time from the first step to the last file
written counts. `wait_share` is what the loop waited for batches.

`workers_1` and `workers_2` are the same training in one and in two processes at a global batch of 1,024, joined as Ray
joins its workers; `workers_nats_difference` is between their validation ELBOs after the same number of rows (the same
rows and noise in the same steps: what is left is rounding, in bfloat16 where the processor has it).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import alternating, finish, parser
from pythae_peer import train as train_pythae
from torch.nn import functional

from parvae_pipeline.config import RunSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import Architecture, VariationalAutoencoder
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.train import train
from parvae_pipeline.world import World

BATCH_SIZE, GLOBAL_BATCH_SIZE = 256, 1024
ARCHITECTURE = Architecture(network="table", prior="normal", latent_size=40, width=512, depth=2, channels=32)
HELD_OUT_ROWS = 2_000
"""So that evaluations take in this short run the share that they take in one of 100 epochs: 4 %."""
STREAM_BUDGET_MB = 16.0
"""A third of the rows: two windows of 8 MB."""
Waits = dict[str, list[float]]


def main() -> None:
    """Run the contenders in turns and print medians and ratios."""
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    data = options.data / "binmnist" / "train.parquet"
    num_steps, repeats = (20, 1) if options.quick else (600, 3)
    waits: Waits = {"memory": [], "stream": []}
    nats: dict[int, float] = {}
    contenders: dict[str, Callable[[], float]] = {
        "memory_rows_per_s": lambda: _ours(data, num_steps, waits["memory"]),
        "memory_fp32_rows_per_s": lambda: _ours(data, num_steps, [], precision="float32"),
        "stream_rows_per_s": lambda: _ours(data, num_steps, waits["stream"], memory_budget_mb=STREAM_BUDGET_MB),
        "workers_1_rows_per_s": lambda: _workers(data, num_steps, 1, nats),
        "workers_2_rows_per_s": lambda: _workers(data, num_steps, 2, nats),
    }
    if not options.ours_only:
        contenders["by_hand_rows_per_s"] = lambda: _by_hand(data, num_steps)
        contenders["pythae_rows_per_s"] = lambda: _pythae(data, num_steps)
    figures = alternating(contenders, repeats=repeats)
    figures["stream_over_memory"] = figures["stream_rows_per_s"] / figures["memory_rows_per_s"]
    figures["bfloat16_over_float32"] = figures["memory_rows_per_s"] / figures["memory_fp32_rows_per_s"]
    figures["workers_2_over_1"] = figures["workers_2_rows_per_s"] / figures["workers_1_rows_per_s"]
    figures["workers_nats_difference"] = abs(nats[2] - nats[1])
    for name, shares in waits.items():
        figures[f"{name}_wait_share"] = statistics.median(shares)
    if not options.ours_only:
        for name in ("memory", "memory_fp32", "stream"):
            figures[f"{name}_ratio"] = figures[f"{name}_rows_per_s"] / figures["by_hand_rows_per_s"]
        figures["memory_over_pythae"] = figures["memory_rows_per_s"] / figures["pythae_rows_per_s"]
    finish(figures, as_json=options.json)


def settings_for(data: Path, *, memory_budget_mb: float = 4096.0, **train: Any) -> RunSettings:
    """A run on one thread a process, as short as its other settings say."""
    document: Mapping[str, Any] = {
        "data": {
            "paths": [str(data)],
            "columns": {"label": "ignored"},
            "memory_budget_mb": memory_budget_mb,
            "max_held_out_rows": HELD_OUT_ROWS,
        },
        "model": {"width": ARCHITECTURE.width, "latent_size": ARCHITECTURE.latent_size, "prior": ARCHITECTURE.prior},
        "train": {"threads": 1, "device": "cpu", **train},
    }
    return RunSettings.from_mapping(document)


def _ours(
    data: Path, num_steps: int, waits: list[float], *, precision: str = "auto", memory_budget_mb: float = 4096.0
) -> float:
    settings = settings_for(
        data, memory_budget_mb=memory_budget_mb, max_steps=num_steps, batch_size=BATCH_SIZE, precision=precision
    )
    begun_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            settings,
            Path(folder) / "run",
            announce=lambda _: begun_s.append(time.perf_counter()),
            report=lambda report: waits.append(report.data_wait_share),
        )
        return num_steps * BATCH_SIZE / (time.perf_counter() - begun_s[0])


def _workers(data: Path, num_steps: int, num_workers: int, nats: dict[int, float]) -> float:
    """Rows a second of processes of one thread each; their last validation ELBO goes to `nats`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_workers, settings_for(data, max_steps=num_steps, batch_size=GLOBAL_BATCH_SIZE), folder)
        torch.multiprocessing.spawn(_work, arguments, nprocs=num_workers)
        outcome = json.loads((Path(folder) / "outcome.json").read_text())
    nats[num_workers] = outcome["nats"]
    return num_steps * GLOBAL_BATCH_SIZE / float(outcome["seconds"])


def _work(rank: int, num_workers: int, settings: RunSettings, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    meeting_place = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting_place, rank=rank, world_size=num_workers)
    begun_s: list[float] = []
    result = train(
        settings,
        Path(folder) / "run",
        announce=lambda _: begun_s.append(time.perf_counter()),
        world=World.of_this_process(),
    )
    if rank == 0:
        seconds = time.perf_counter() - begun_s[0]
        outcome = {"seconds": seconds, "nats": result.negative_elbo_nats}
        (Path(folder) / "outcome.json").write_text(json.dumps(outcome))
    torch.distributed.barrier()  # a process that leaves while another still talks to it ends it
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo threads that outlive the interpreter abort the process: pytorch issue 190489


def rows_and_network(data: Path) -> tuple[torch.Tensor, VariationalAutoencoder]:
    """All rows of a file as float32 (n, 784), and a network of the same size as ours."""
    table = pq.read_table(data)
    schema = infer_schema(statistics_of(table), overrides={"label": "ignored"}, label=None)
    ((_, rows),) = encode(schema, table).items()
    torch.manual_seed(0)
    return torch.from_numpy(rows.astype(np.float32)), VariationalAutoencoder(schema, ARCHITECTURE)


def _by_hand(data: Path, num_steps: int) -> float:
    rows, model = rows_and_network(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = MemoryReader({"x": rows.numpy()}, batch_size=BATCH_SIZE, seed=0).batches(0)
    started_s = time.perf_counter()
    for _ in range(num_steps):
        step_by_hand(model, optimizer, next(batches)["x"])
    return num_steps * BATCH_SIZE / (time.perf_counter() - started_s)


def step_by_hand(model: VariationalAutoencoder, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """One step as a user would write it, on rows (B, 784) of 0 and 1."""
    mean, log_variance = model.encoder(2.0 * x - 1.0)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    distortion = functional.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    rate = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum()
    optimizer.zero_grad()
    torch.autograd.backward((distortion + rate) / len(x))
    optimizer.step()


def _pythae(data: Path, num_steps: int) -> float:
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    rows, network = rows_and_network(data)

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network.encoder

        def forward(self, x: torch.Tensor) -> ModelOutput:
            mean, log_variance = self.network(2.0 * x - 1.0)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network.decoder

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    config = VAEConfig(input_dim=(rows.shape[1],), latent_dim=ARCHITECTURE.latent_size, reconstruction_loss="bce")
    num_epochs = -(-num_steps * BATCH_SIZE // len(rows))
    rows = rows[: num_steps * BATCH_SIZE // num_epochs]
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    return num_epochs * len(rows) / train_pythae(model, rows, batch_size=BATCH_SIZE, num_epochs=num_epochs)


if __name__ == "__main__":
    main()
