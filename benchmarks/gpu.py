"""Training on a GPU: rows a second in float32, bfloat16 and compiled, against a loop written by hand.

    python benchmarks/gpu.py

`by_hand` has all rows on the GPU as float32, the same network and batch size, and plain Adam. Ours are whole runs, rows
decoded once. `share_of_matmul_rate` is the arithmetic of the linear layers (forward once, backward twice) in bfloat16
over what one large matrix product reaches on this device. Without a CUDA device it says so, and measures nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import alternating, finish, parser
from train_throughput import rows_and_network, settings_for, step_by_hand

from parvae_pipeline.train import train

BATCH_SIZE = 1024
MATMUL_SIZE = 8192
FLOPS_PER_WEIGHT = 6
"""A row costs every weight of a linear layer a multiplication and an addition, forward and twice backward."""


def main() -> None:
    """Run the contenders in turns and print medians and ratios."""
    options = parser(__doc__ or "").parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.")
        finish({"num_cuda_devices": 0}, as_json=options.json)
        return
    data = options.data / "binmnist" / "train.parquet"
    num_steps, repeats = (50, 1) if options.quick else (2000, 3)
    contenders: dict[str, Callable[[], float]] = {
        "float32_rows_per_s": lambda: _ours(data, num_steps, precision="float32"),
        "bfloat16_rows_per_s": lambda: _ours(data, num_steps, precision="bfloat16"),
        "compiled_rows_per_s": lambda: _ours(data, num_steps, precision="bfloat16", compiled=True),
    }
    if not options.ours_only:
        contenders["by_hand_rows_per_s"] = lambda: _by_hand(data, num_steps)
    figures = {"num_cuda_devices": float(torch.cuda.device_count()), **alternating(contenders, repeats=repeats)}
    _, network = rows_and_network(data)
    num_weights = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Linear))
    rate = figures["bfloat16_rows_per_s"] * num_weights * FLOPS_PER_WEIGHT
    figures["matmul_flops_per_s"] = _matmul_flops_per_s()
    figures["share_of_matmul_rate"] = rate / figures["matmul_flops_per_s"]
    if not options.ours_only:
        for name in ("float32", "bfloat16", "compiled"):
            figures[f"{name}_ratio"] = figures[f"{name}_rows_per_s"] / figures["by_hand_rows_per_s"]
    finish(figures, as_json=options.json)


def _ours(data: Path, num_steps: int, *, precision: str, compiled: bool = False) -> float:
    settings = settings_for(
        data, device="cuda", max_steps=num_steps, batch_size=BATCH_SIZE, precision=precision, compile=compiled
    )
    begun_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(settings, Path(folder) / "run", announce=lambda _: begun_s.append(time.perf_counter()))
        return num_steps * BATCH_SIZE / (time.perf_counter() - begun_s[0])


def _by_hand(data: Path, num_steps: int) -> float:
    rows, model = rows_and_network(data)
    rows, model = rows.cuda(), model.cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(num_steps):
        step_by_hand(model, optimizer, rows[torch.randint(len(rows), (BATCH_SIZE,), device="cuda")])
    torch.cuda.synchronize()
    return num_steps * BATCH_SIZE / (time.perf_counter() - started_s)


def _matmul_flops_per_s() -> float:
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * MATMUL_SIZE**3 / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
