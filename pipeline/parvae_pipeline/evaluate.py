"""The ELBO of rows under a model: the one figure that validation, tests and benchmarks share."""

from __future__ import annotations

import dataclasses
import math
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
MIN_EVALUATED_CODES = 512
"""Few rows get more than a pair of codes each: by a pair for each of the 30 held-out rows of ADBench's stamps the ELBO
is off by 0.4 nats, which is what repairs of it are about."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over rows, in nats a row."""

    negative_elbo_nats: float
    rate_nats: float
    distortion_nats: float
    column_nats: dict[str, float]
    """Distortion of every column."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodEstimate:
    """The importance-weighted estimate of the negative log-likelihood, in nats a row."""

    negative_log_likelihood_nats: float
    standard_error_nats: float
    """Of the mean over rows: the standard deviation of the rows' estimates over the root of their number."""
    num_samples: int
    """S: codes drawn for every row."""
    num_rows: int

    def __str__(self) -> str:
        return (
            f"{self.negative_log_likelihood_nats:.3f} +- {self.standard_error_nats:.3f} nats a row "
            f"(importance-weighted, S = {self.num_samples:,} codes a row, n = {self.num_rows:,} rows)"
        )


BALANCE_PATTERNS, BALANCE_PAIRS = 12, 4
TIED_NATS = 1e-4
"""Patterns whose means over rows are as close as this count as equally good."""
BALANCE_SHARE, MIN_BALANCE_ROWS, MAX_BALANCE_ROWS = 0.002, 32, 4_096
"""Rows to balance on, as a share of the rows trained on: about 2 % of the time of training."""


@torch.no_grad()
def evaluate(model: VariationalAutoencoder, rows: Arrays, *, seed: int = 0, world: World = ALONE) -> Evaluation:
    """The ELBO, averaged over rows and over pairs of opposite random codes: one a row, or more where rows are few.

    It estimates the bound without bias, and the same rows meet the same noise each time, so that two models differ by
    what they are. With several processes each one takes its share of `rows`, and all get the figures of one alone.
    """
    num_columns = len(model.schema.modelled)
    sums = torch.zeros(num_columns + 2, dtype=torch.float64)  # nats of every column, nats of the code, rows
    generator = torch.Generator().manual_seed(seed)
    num_rows, share = len(next(iter(rows.values()))), slice(world.rank, None, world.size)
    batches = ({name: tensor[share] for name, tensor in batch.items()} for batch in _batches(rows))
    for first, batch in zip(range(0, num_rows, EVALUATION_ROWS), placed(batches, model.device), strict=True):
        mean, log_variance = model.posterior(batch)
        shape = (_pairs_a_row(num_rows), min(EVALUATION_ROWS, num_rows - first), model.latent_size)
        noise = torch.randn(shape, generator=generator)[:, share].to(model.device)
        terms = model.terms_at(batch, mean, log_variance, torch.cat([noise, -noise]))
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


def evaluation_cost(num_rows: int) -> int:
    """Rows, each with one pair of codes, that `evaluate` takes about as long for as for `num_rows`."""
    return num_rows * _pairs_a_row(num_rows)


def _pairs_a_row(num_rows: int) -> int:
    return max(1, MIN_EVALUATED_CODES // (2 * max(1, num_rows)))


@torch.no_grad()
def with_rate_of(evaluation: Evaluation, model: VariationalAutoencoder, rows: Arrays, *, seed: int = 0) -> Evaluation:
    """`evaluation` of the same rows and seed, had its model had the prior of `model`: no prior changes the distortion.

    Without decoding, which takes most of the time of `evaluate`.
    """
    total_nats, num_rows = 0.0, len(next(iter(rows.values())))
    generator = torch.Generator().manual_seed(seed)
    for batch in placed(_batches(rows), model.device):
        mean, log_variance = model.posterior(batch)
        noise = torch.randn(_pairs_a_row(num_rows), *mean.shape, generator=generator).to(model.device)
        total_nats += float(model.rate_at(mean, log_variance, torch.cat([noise, -noise])).double().sum())
    rate_nats = total_nats / num_rows
    return dataclasses.replace(
        evaluation, rate_nats=rate_nats, negative_elbo_nats=evaluation.distortion_nats + rate_nats
    )


@torch.no_grad()
def estimate_likelihood(
    model: VariationalAutoencoder, rows: Arrays, *, num_samples: int = 1_000, seed: int = 0
) -> LikelihoodEstimate:
    """-log p(x) by importance sampling from the posterior (Burda et al. 2016, equation 8 with k = `num_samples`).

    In expectation an upper bound that tightens as S grows; with S = 1 it is the negative ELBO.
    """
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for batch in _batches(rows):
        mean, log_variance = model.posterior(batch)
        stddev = torch.exp(0.5 * log_variance)
        total = torch.full((len(mean),), -torch.inf)
        for _ in range(num_samples):
            z = mean + stddev * torch.randn(mean.shape, generator=generator)
            total = torch.logaddexp(total, model.log_weights(batch, mean, log_variance, z))
        estimates.append(math.log(num_samples) - total.double())
    nats = torch.cat(estimates)
    return LikelihoodEstimate(
        negative_log_likelihood_nats=float(nats.mean()),
        standard_error_nats=float(nats.std(correction=min(1, len(nats) - 1)) / math.sqrt(len(nats))),
        num_samples=num_samples,
        num_rows=len(nats),
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
    off_nats = differences.abs() / num_rows
    # Patterns with the same points in another order tie: the first of them, for rounding must not choose.
    model.score_signs.copy_(patterns[int((off_nats <= off_nats.min() + TIED_NATS).nonzero()[0])])


@torch.no_grad()
def posteriors(model: VariationalAutoencoder, rows: Arrays) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (N, L) of the codes of rows."""
    parts = [model.posterior(batch) for batch in _batches(rows)]
    return torch.cat([mean for mean, _ in parts]), torch.cat([log_variance for _, log_variance in parts])


def _batches(rows: Arrays) -> Iterator[dict[str, Tensor]]:
    num_rows = len(next(iter(rows.values())))
    for first in range(0, num_rows, EVALUATION_ROWS):
        yield {name: torch.from_numpy(array[first : first + EVALUATION_ROWS]) for name, array in rows.items()}
