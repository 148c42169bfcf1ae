"""Negative ELBO on binarised MNIST: trained and exported by the commands, scored by the exported graph and by torch.

    python benchmarks/elbo.py [--budget 10m]

`graph_nats` is the mean score of the test rows by the exported graph, `torch_nats` the same figure by torch, and
`sampled_nats` the ELBO by torch with 16 random codes a row: what the two fixed points of the graph stand for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import finish, parser

import parvae
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.evaluate import evaluate
from parvae_pipeline.reader import encode, select

NUM_SAMPLES = 16


def main() -> None:
    """Train, export and compare."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--budget", default="10m", help="time for training")
    arguments.add_argument("--run", type=Path, help="a run folder that is trained and exported already")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or _trained(Path(folder) / "run", options.data, "20s" if options.quick else options.budget)
        table = pq.read_table(options.data / "binmnist" / "test.parquet")
        table = table.slice(0, 500) if options.quick else table
        scores = parvae.load(run / "model.vae", threads=torch.get_num_threads()).score(table)
        checkpoint = read_checkpoint(run / "ckpt.pt")
    rows = {name: np.array(array) for name, array in encode(checkpoint.schema, table).items()}  # torch wants to own it
    graph_nats = float(scores.nats.mean(dtype=np.float64))
    torch_nats = evaluate(checkpoint.model, rows).negative_elbo_nats
    generator = torch.Generator().manual_seed(0)
    sums = 0.0
    for first in range(0, table.num_rows, 1000):
        batch = {
            name: torch.from_numpy(array)
            for name, array in select(rows, np.arange(first, min(first + 1000, table.num_rows))).items()
        }
        for _ in range(NUM_SAMPLES):
            noise = torch.randn(len(next(iter(batch.values()))), checkpoint.model.latent_size, generator=generator)
            with torch.no_grad():
                sums += float(checkpoint.model.elbo_terms(batch, noise).negative_elbo_nats.double().sum())
    figures = {
        "graph_nats": graph_nats,
        "torch_nats": torch_nats,
        "difference_nats": abs(graph_nats - torch_nats),
        "sampled_nats": sums / NUM_SAMPLES / table.num_rows,
        "rows": table.num_rows,
    }
    finish(figures, as_json=options.json)


def _trained(run: Path, data: Path, budget: str) -> Path:
    train = ["train", str(data / "binmnist" / "train.parquet"), "-o", str(run), "--columns", "label:ignored"]
    for arguments in ([*train, "--budget", budget], ["export", str(run / "ckpt.pt")]):
        subprocess.run([sys.executable, "-m", "parvae", *arguments], check=True, stdout=sys.stderr)
    return run


if __name__ == "__main__":
    main()
