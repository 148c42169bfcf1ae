"""Priors over the latent code. Each one scores codes in nats and turns standard normal noise into codes.

Letters in shapes: B rows, L latent dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from parvae_pipeline.likelihoods import LOG_TWO_PI


class Prior(nn.Module, ABC):
    """The interface: `log_prob` or a lower bound of it, and a draw; `kl` may be exact where a closed form exists."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """(B,) nats of codes `z` (B, L)."""

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """(B, L) codes drawn with standard normal `noise` (B, L)."""

    def kl(self, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
        """(B,) nats from N(mean, exp(log_variance)) to the prior; here the one-sample estimate at `z` (B, L)."""
        return gaussian_log_prob(z, mean, log_variance) - self.log_prob(z)


class StandardNormal(Prior):
    """N(0, I), with the KL term in closed form (Kingma and Welling 2014, appendix B)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_TWO_PI).sum(dim=1)

    def sample(self, noise: Tensor) -> Tensor:
        return noise

    def kl(self, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)


PRIORS: Mapping[str, type[Prior]] = {"normal": StandardNormal}


def gaussian_log_prob(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) nats of `z` under a diagonal Gaussian."""
    squared = (z - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squared + log_variance + LOG_TWO_PI).sum(dim=1)
