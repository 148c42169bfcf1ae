"""The ELBO of rows under a model: the one figure that validation, tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parvae.rows import Arrays
from parvae_pipeline.device import placed
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.world import ALONE, World

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


BALANCE_PATTERNS, BALANCE_PAIRS = 12, 4
BALANCE_SHARE, MIN_BALANCE_ROWS, MAX_BALANCE_ROWS = 0.002, 64, 4_096
"""Rows to balance on, as a share of the rows trained on: about 1 % of the time of training."""


@torch.no_grad()
def evaluate(model: VariationalAutoencoder, rows: Arrays, *, seed: int = 0, world: World = ALONE) -> Evaluation:
    """The ELBO, averaged over rows and over a pair of opposite random codes a row.

    It estimates the bound without bias, and the same rows meet the same noise each time, so that two models differ by
    what they are. With several processes each one takes its share of `rows`, and all get the same figures.
    """
    num_columns = len(model.schema.modelled)
    sums = torch.zeros(num_columns + 2, dtype=torch.float64)  # nats of every column, nats of the code, rows
    generator = torch.Generator().manual_seed(seed)
    rows = {name: array[world.rank :: world.size] for name, array in rows.items()}
    for batch in placed(_batches(rows), model.device):
        mean, log_variance = model.posterior(batch)
        noise = torch.randn(mean.shape, generator=generator).to(model.device)
        terms = model.terms_at(batch, mean, log_variance, torch.stack([noise, -noise]))
        sums[:num_columns] += terms.column_nats.double().sum(dim=0).cpu()
        sums[num_columns] += terms.kl_nats.double().sum().cpu()
        sums[-1] += len(mean)
    world.sum(sums)
    *column_nats, rate_nats = (sums[:-1] / sums[-1]).tolist()
    return Evaluation(
        negative_elbo_nats=sum(column_nats) + rate_nats,
        rate_nats=rate_nats,
        distortion_nats=sum(column_nats),
        column_nats=dict(zip((column.name for column in model.schema.modelled), column_nats, strict=True)),
    )


@torch.no_grad()
def balance_score(model: VariationalAutoencoder, rows: Arrays, *, rows_trained: int, seed: int) -> None:
    """Choose the signs of `VariationalAutoencoder.score_terms` whose mean over `rows` is closest to the ELBO.

    The fixed points of a score have the variances of the posterior, but not its zero covariances: with signs taken at
    random the mean is off (by 0.4 nats in the root mean square on binarised MNIST).
    """
    num_rows = max(MIN_BALANCE_ROWS, min(MAX_BALANCE_ROWS, round(BALANCE_SHARE * rows_trained)))
    generator = torch.Generator().manual_seed(seed)
    size = (BALANCE_PATTERNS, *model.score_signs.shape)
    patterns = (torch.randint(0, 2, size, generator=generator) * 2.0 - 1.0).to(model.device)
    differences = torch.zeros(BALANCE_PATTERNS, dtype=torch.float64)
    for batch in placed(_batches({name: array[:num_rows] for name, array in rows.items()}), model.device):
        mean, log_variance = model.posterior(batch)
        noise = torch.randn(BALANCE_PAIRS, *mean.shape, generator=generator).to(model.device)
        reference = model.terms_at(batch, mean, log_variance, torch.cat([noise, -noise])).negative_elbo_nats
        for index, signs in enumerate(patterns):
            steps = torch.cat([signs, -signs]).unsqueeze(1)
            found = model.terms_at(batch, mean, log_variance, steps).negative_elbo_nats
            differences[index] += (found - reference).double().sum().cpu()
    model.score_signs.copy_(patterns[differences.abs().argmin()])


def _batches(rows: Arrays) -> Iterator[dict[str, Tensor]]:
    num_rows = len(next(iter(rows.values())))
    for first in range(0, num_rows, EVALUATION_ROWS):
        yield {name: torch.from_numpy(array[first : first + EVALUATION_ROWS]) for name, array in rows.items()}
