"""Density of binarised MNIST: parvae, trained and exported by the commands, beside pythae's VAE and IWAE.

    python benchmarks/density.py [--budget 10m]

Every contender trains for the same time on one thread and sees no test row. `*_elbo_nats` is the negative ELBO of the
10,000 test rows, `*_likelihood_nats` the negative log-likelihood of the first 500 by importance sampling (S = 1,000
codes a row; Burda et al. 2016) and `*_standard_error_nats` that of its mean. pythae's models (group `bench`) have 40
latent dimensions and its own networks and optimiser, batches of 128 rows, and are trained for that many CPU seconds.

`graph_nats` is the mean score of the test rows by our exported graph, `torch_nats` the same figure by torch.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import finish, parser, trained
from pythae_peer import train
from torch import Tensor
from torch.nn import functional

import parvae
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.commands import parse_duration
from parvae_pipeline.evaluate import estimate_likelihood, evaluate
from parvae_pipeline.reader import encode

NUM_SAMPLES, LIKELIHOOD_ROWS = 1_000, 500
LATENT_SIZE, BATCH_SIZE = 40, 128
PEERS = {"pythae_vae": ("VAE", {}), "pythae_iwae": ("IWAE", {"number_samples": 10})}


def main() -> None:
    """Train, export and compare."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--budget", default="10m", help="time for each training, as 90s, 10m or 1h")
    arguments.add_argument("--run", type=Path, help="a run folder that is trained and exported already")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    budget = "10s" if options.quick else options.budget
    test = pq.read_table(options.data / "binmnist" / "test.parquet")
    test = test.slice(0, 200) if options.quick else test
    num_samples = 10 if options.quick else NUM_SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder) / "run"
        if options.run is None:
            data = options.data / "binmnist" / "train.parquet"
            trained(run, data, "--columns", "label:ignored", "--budget", budget)
        figures = _ours(run, test, num_samples)
    if not options.ours_only:
        rows = _pixels(pq.read_table(options.data / "binmnist" / "train.parquet"))
        for name, (kind, settings) in PEERS.items():
            model = _pythae(kind, settings, rows, parse_duration(budget))
            figures |= {f"{name}_{what}": value for what, value in _judged(model, _pixels(test), num_samples).items()}
    finish(figures, as_json=options.json)


def _ours(run: Path, test: Any, num_samples: int) -> dict[str, float]:
    checkpoint = read_checkpoint(run / "ckpt.pt")
    rows = {name: np.array(array) for name, array in encode(checkpoint.schema, test).items()}  # torch wants to own it
    graph_nats = float(parvae.load(run / "model.vae", threads=1).score(test).nats.mean(dtype=np.float64))
    torch_nats = evaluate(checkpoint.model, rows).negative_elbo_nats
    few = {name: array[:LIKELIHOOD_ROWS] for name, array in rows.items()}
    estimate = estimate_likelihood(checkpoint.model, few, num_samples=num_samples)
    return {
        "rows": test.num_rows,
        "graph_nats": graph_nats,
        "torch_nats": torch_nats,
        "difference_nats": abs(graph_nats - torch_nats),
        "ours_elbo_nats": torch_nats,
        "ours_likelihood_nats": estimate.negative_log_likelihood_nats,
        "ours_standard_error_nats": estimate.standard_error_nats,
    }


def _pixels(table: Any) -> Tensor:
    pixels = table["pixels"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return torch.from_numpy(pixels.astype(np.float32))


def _pythae(kind: str, settings: dict[str, Any], rows: Tensor, budget_s: float) -> Any:
    """A model of pythae after `budget_s` CPU seconds of its own trainer."""
    import pythae.models

    torch.manual_seed(0)
    config = getattr(pythae.models, f"{kind}Config")(
        input_dim=(rows.shape[1],), latent_dim=LATENT_SIZE, reconstruction_loss="bce", **settings
    )
    model = getattr(pythae.models, kind)(config)
    train(model, rows, batch_size=BATCH_SIZE, allowed_cpu_s=budget_s)
    return model.eval()


@torch.no_grad()
def _judged(model: Any, rows: Tensor, num_samples: int) -> dict[str, float]:
    """The ELBO of all rows with one code each, and the importance-weighted likelihood of the first few."""
    torch.manual_seed(0)
    elbo = [-_log_weights(model, batch, 1)[0] for batch in rows.split(BATCH_SIZE)]
    few = [_log_weights(model, row.unsqueeze(0), num_samples)[:, 0] for row in rows[:LIKELIHOOD_ROWS]]
    nats = torch.stack([math.log(num_samples) - torch.logsumexp(weights.double(), 0) for weights in few])
    return {
        "elbo_nats": float(torch.cat(elbo).double().mean()),
        "likelihood_nats": float(nats.mean()),
        "standard_error_nats": float(nats.std() / math.sqrt(len(nats))),
    }


def _log_weights(model: Any, x: Tensor, num_samples: int) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) of `num_samples` codes a row (S, B)."""
    code = model.encoder(x)
    mean, stddev = code.embedding, torch.exp(0.5 * code.log_covariance)
    noise = torch.randn(num_samples, *mean.shape)
    z = mean + stddev * noise
    probability = model.decoder(z.flatten(0, 1)).reconstruction.reshape(num_samples, *x.shape)
    log_likelihood = -functional.binary_cross_entropy(probability, x.expand_as(probability), reduction="none").sum(-1)
    return log_likelihood + (0.5 * (noise.square() - z.square()) + stddev.log()).sum(-1)


if __name__ == "__main__":
    main()
