"""Objectives: what a training step minimises the mean of, in nats a row.

Letters in shapes: S codes a row, B rows, L latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from parvae_pipeline.model import RawBatch, VariationalAutoencoder, repeated
from parvae_pipeline.priors import StandardNormal

TRIMMED_SHARE = 0.2

Posterior = tuple[Tensor, Tensor]
"""Mean and log-variance (B, L)."""


class Objective(Protocol):
    """One way to train; `noise` (S, B, L) is standard normal, `kl_weight` multiplies the rate."""

    def __call__(
        self,
        model: VariationalAutoencoder,
        raw: RawBatch,
        posterior: Posterior,
        noise: Tensor,
        *,
        kl_weight: float | Tensor,
        free_bits_nats: float,
    ) -> Tensor:
        """The loss of every row (B,)."""


def negative_elbo(
    model: VariationalAutoencoder,
    raw: RawBatch,
    posterior: Posterior,
    noise: Tensor,
    *,
    kl_weight: float | Tensor,
    free_bits_nats: float,
) -> Tensor:
    """Distortion plus weighted rate, averaged over S codes (Kingma and Welling 2014; weight: Higgins et al. 2017)."""
    terms = model.terms_at(raw, *posterior, noise)
    rate = terms.kl_nats
    if free_bits_nats:
        rate = _rate_beyond_free_bits(model, posterior, rate.mean(), free_bits_nats)
    return terms.column_nats.sum(dim=1) + kl_weight * rate


def negative_importance_weighted_bound(
    model: VariationalAutoencoder,
    raw: RawBatch,
    posterior: Posterior,
    noise: Tensor,
    *,
    kl_weight: float | Tensor,
    free_bits_nats: float,
) -> Tensor:
    """-log of the mean of S importance weights: closer to the likelihood as S grows (Burda et al. 2016)."""
    assert not free_bits_nats, "free bits are a bound on the rate, which this objective has not"
    mean, log_variance = posterior
    num_samples = len(noise)
    codes = mean + noise * torch.exp(0.5 * log_variance)  # (S, B, L)
    weights = model.log_weights(
        {name: repeated(rows, num_samples) for name, rows in raw.items()},
        repeated(mean, num_samples),
        repeated(log_variance, num_samples),
        codes.flatten(0, 1),
        kl_weight,
    )
    return math.log(num_samples) - torch.logsumexp(weights.reshape(num_samples, -1), dim=0)


OBJECTIVES: Mapping[str, Objective] = {"elbo": negative_elbo, "iwae": negative_importance_weighted_bound}


def trimmed_mean(losses: Tensor) -> Tensor:
    """() the mean of the losses (B,) of a batch of contaminated rows without the highest fifth.

    Rows that the model finds hard are likely anomalies, which it must not learn (ALTBI: Cho et al. 2024).
    """
    num_kept = max(1, round((1.0 - TRIMMED_SHARE) * len(losses)))
    return torch.topk(losses, num_kept, largest=False).values.mean()


def _rate_beyond_free_bits(
    model: VariationalAutoencoder, posterior: Posterior, rate: Tensor, free_bits_nats: float
) -> Tensor:
    """The mean rate with its first `free_bits_nats` a dimension free of charge (Kingma et al. 2016, equation 15).

    N(0, I) has a rate for every dimension; with any other prior the dimensions share what is free.
    """
    if isinstance(model.prior, StandardNormal):
        return model.prior.kl_by_dimension(*posterior).mean(dim=0).clamp(min=free_bits_nats).sum()
    return rate.clamp(min=free_bits_nats * model.latent_size)
