"""How fast a model trains on this machine, before the course of a run is planned."""

from __future__ import annotations

import time

import torch

from parvae.rows import Arrays
from parvae_pipeline.device import placed
from parvae_pipeline.model import VariationalAutoencoder

TIMED_STEPS = 2
"""Steps that are timed, after one that warms up."""


def rows_per_second(model: VariationalAutoencoder, rows: Arrays, *, layer_dtype: torch.dtype) -> float:
    """Rows a second of gradients of the ELBO, over batches of all `rows`; the model comes back as it was."""
    (batch,) = placed(iter([{name: torch.from_numpy(array) for name, array in rows.items()}]), model.device)
    num_rows = len(next(iter(rows.values())))
    noise = torch.randn(num_rows, model.latent_size, generator=torch.Generator().manual_seed(0)).to(model.device)
    before, model.layer_dtype = model.layer_dtype, layer_dtype
    started_s = 0.0
    for step in range(1 + TIMED_STEPS):
        if step == 1:
            started_s = time.monotonic()
        loss = model.elbo_terms(batch, noise).negative_elbo_nats.mean()
        torch.autograd.backward(loss)
        float(loss.detach())  # waits for a GPU
    seconds = time.monotonic() - started_s
    model.layer_dtype = before
    model.zero_grad(set_to_none=True)
    return TIMED_STEPS * num_rows / seconds
