"""Priors over the latent code. Each one scores codes in nats and turns standard normal noise into codes.

Letters in shapes: B rows, L latent dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from parvae_pipeline.likelihoods import LOG_TWO_PI, standard_normal_cdf


class Prior(nn.Module, ABC):
    """The interface: `log_prob` or a lower bound of it, and a draw; `kl` may be exact where a closed form exists."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    @property
    def num_noise(self) -> int:
        """Standard normal numbers that one drawn code takes."""
        return self.latent_size

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """(B,) nats of codes `z` (B, L)."""

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """(B, L) codes drawn with standard normal `noise` (B, num_noise)."""

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
        return self.kl_by_dimension(mean, log_variance).sum(dim=1)

    def kl_by_dimension(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """(B, L) nats of every dimension."""
        return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


class RealNVP(Prior):
    """Affine couplings from z to N(0, I), trained jointly with the rest (Dinh et al. 2017; as a prior, Xu et al. 2019).

    It cures the hole between the codes of real rows and N(0, I), where samples look like nothing.
    """

    NUM_COUPLINGS = 6
    MAX_WIDTH = 128

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        width = min(self.MAX_WIDTH, 8 * latent_size)
        self.couplings = nn.ModuleList(
            AffineCoupling(latent_size, width, reverse=bool(index % 2)) for index in range(self.NUM_COUPLINGS)
        )

    def log_prob(self, z: Tensor) -> Tensor:
        log_determinant = torch.zeros(z.shape[0], device=z.device)
        for coupling in self.couplings:
            z, change = coupling(z)
            log_determinant = log_determinant + change
        return log_determinant - 0.5 * (z.square() + LOG_TWO_PI).sum(dim=1)

    def sample(self, noise: Tensor) -> Tensor:
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, AffineCoupling)
            noise = coupling.inverse(noise)
        return noise


class AffineCoupling(nn.Module):
    """One half of z shifts and scales the other; the identity at the start. `reverse` swaps the halves."""

    MAX_LOG_SCALE = 2.0

    def __init__(self, latent_size: int, width: int, *, reverse: bool) -> None:
        super().__init__()
        self.sizes = (latent_size // 2, latent_size - latent_size // 2)
        self.reverse = reverse
        num_kept, num_moved = reversed(self.sizes) if reverse else self.sizes
        self.net = nn.Sequential(
            nn.Linear(num_kept, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * num_moved)
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, L) moved towards N(0, I), and the log-determinant (B,)."""
        kept, moved = self._halves(z)
        log_scale, shift = self._log_scale_and_shift(kept)
        return self._joined(kept, (moved + shift) * torch.exp(log_scale)), log_scale.sum(dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """The z (B, L) that `forward` moved here."""
        kept, moved = self._halves(z)
        log_scale, shift = self._log_scale_and_shift(kept)
        return self._joined(kept, moved * torch.exp(-log_scale) - shift)

    def _log_scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(kept).chunk(2, dim=1)
        return self.MAX_LOG_SCALE * torch.tanh(raw / self.MAX_LOG_SCALE), shift

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, second = z[:, : self.sizes[0]], z[:, self.sizes[0] :]
        return (second, first) if self.reverse else (first, second)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.reverse else [kept, moved], dim=1)


class GaussianMixture(Prior):
    """K Gaussians with full covariances, fitted to the codes of training rows once those no longer move (`mixture.py`).

    One number of the noise picks the component, the others are its Gaussian.
    """

    log_shares: Tensor
    means: Tensor
    factors: Tensor
    whitenings: Tensor

    def __init__(self, latent_size: int, num_components: int) -> None:
        super().__init__(latent_size)
        self.num_components = num_components
        identity = torch.eye(latent_size).repeat(num_components, 1, 1)
        self.register_buffer("log_shares", torch.full((num_components,), -math.log(num_components)))
        self.register_buffer("means", torch.zeros(num_components, latent_size))
        self.register_buffer("factors", identity)  # (K, L, L) lower Cholesky factors of the covariances
        self.register_buffer("whitenings", identity.clone())  # their inverses

    @property
    def num_noise(self) -> int:
        return self.latent_size + 1

    def set_components(self, shares: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Take `shares` (K,), `means` (K, L) and `covariances` (K, L, L)."""
        factors = torch.linalg.cholesky(covariances.double())
        identity = torch.eye(self.latent_size, dtype=torch.float64).expand_as(factors)
        self.log_shares.copy_(shares.log())
        self.means.copy_(means)
        self.factors.copy_(factors)
        self.whitenings.copy_(torch.linalg.solve_triangular(factors, identity, upper=False))

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.component_log_prob(z), dim=1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """(B, K) log of share times density of every component at `z` (B, L)."""
        white = torch.matmul(z.unsqueeze(0) - self.means.unsqueeze(1), self.whitenings.transpose(1, 2))  # (K, B, L)
        log_determinants = torch.diagonal(self.whitenings, dim1=1, dim2=2).log().sum(dim=1)
        constant = self.log_shares + log_determinants - 0.5 * self.latent_size * LOG_TWO_PI
        return (constant.unsqueeze(1) - 0.5 * white.square().sum(dim=2)).t()

    def sample(self, noise: Tensor) -> Tensor:
        quantile = standard_normal_cdf(noise[:, :1])
        passed = (quantile > self.log_shares.exp().cumsum(dim=0)[:-1]).long()
        component = passed.sum(dim=1)
        moved = torch.matmul(self.factors[component], noise[:, 1:].unsqueeze(2)).squeeze(2)
        return self.means[component] + moved


PRIORS: Mapping[str, Callable[[int, int], Prior]] = {
    "normal": lambda latent_size, num_components: StandardNormal(latent_size),
    "realnvp": lambda latent_size, num_components: RealNVP(latent_size),
    "mixture": GaussianMixture,
}
"""Each takes the latent size and the number of components, which only a mixture has."""


def gaussian_log_prob(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) nats of `z` under a diagonal Gaussian."""
    squared = (z - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squared + log_variance + LOG_TWO_PI).sum(dim=1)
