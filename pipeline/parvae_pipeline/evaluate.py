"""The ELBO of rows under a model: the one figure that validation, tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parvae.rows import Arrays
from parvae_pipeline.model import VariationalAutoencoder

EVALUATION_ROWS = 1024
"""Rows at a time; bounds memory, not the result."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over rows, in nats a row."""

    negative_elbo_nats: float
    rate_nats: float
    distortion_nats: float
    column_nats: dict[str, float]
    """Distortion of every column."""


@torch.no_grad()
def evaluate(model: VariationalAutoencoder, rows: Arrays) -> Evaluation:
    """The deterministic ELBO of `VariationalAutoencoder.score_terms`, averaged over rows."""
    num_rows = len(next(iter(rows.values())))
    columns = torch.zeros(len(model.schema.modelled), dtype=torch.float64)
    rate = 0.0
    for first in range(0, num_rows, EVALUATION_ROWS):
        batch = {name: torch.from_numpy(array[first : first + EVALUATION_ROWS]) for name, array in rows.items()}
        terms = model.score_terms(batch)
        columns += terms.column_nats.double().sum(dim=0)
        rate += float(terms.kl_nats.double().sum())
    names = [column.name for column in model.schema.modelled]
    means = columns / num_rows
    return Evaluation(
        negative_elbo_nats=float(means.sum()) + rate / num_rows,
        rate_nats=rate / num_rows,
        distortion_nats=float(means.sum()),
        column_nats=dict(zip(names, means.tolist(), strict=True)),
    )
