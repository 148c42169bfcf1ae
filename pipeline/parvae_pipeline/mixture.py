"""Gaussian mixtures fitted to codes by expectation-maximisation (Dempster et al. 1977).

Letters in shapes: N codes, L latent dimensions, K components.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from parvae_pipeline.priors import GaussianMixture

NUM_ITERATIONS = 30
NUM_COMPONENTS = (1, 2, 4, 8, 16, 32)
SHRINKAGE_CODES = 2.0
"""Weight of the covariance of all codes in that of a component, in codes a dimension: a component of few codes keeps
the shape of the whole."""
MIN_CODES = 20.0
"""Codes that a component holds at least: below, its shape would be that of single rows."""


def fit_mixture(codes: Tensor, num_components: int, *, seed: int) -> GaussianMixture:
    """A mixture of `num_components` Gaussians for `codes` (N, L)."""
    codes = codes.double()
    num_codes, latent_size = codes.shape
    overall = _covariance(codes - codes.mean(dim=0), torch.ones(num_codes, dtype=torch.float64))
    # One code's worth of N(0, I): the covariance of few codes is singular.
    overall = (num_codes * overall + torch.eye(latent_size, dtype=torch.float64)) / (num_codes + 1.0)
    mixture = GaussianMixture(latent_size, num_components).double()
    mixture.set_components(
        torch.full((num_components,), 1.0 / num_components, dtype=torch.float64),
        _spread_out(codes, num_components, torch.Generator().manual_seed(seed)),
        overall.repeat(num_components, 1, 1),
    )
    for _ in range(NUM_ITERATIONS if num_components > 1 else 1):
        shares = torch.softmax(mixture.component_log_prob(codes), dim=1)  # (N, K)
        sizes = shares.sum(dim=0)
        means = (shares.t() @ codes) / sizes.unsqueeze(1).clamp(min=1e-9)
        weight = SHRINKAGE_CODES * latent_size
        covariances = torch.stack(
            [
                (_covariance(codes - means[k], shares[:, k]) * sizes[k] + weight * overall) / (sizes[k] + weight)
                for k in range(num_components)
            ]
        )
        # Dirichlet prior on the shares: no component vanishes, so no logarithm of 0.
        mixture.set_components((sizes + 1.0) / (num_codes + num_components), means, covariances)
    return mixture.float()


def choose_mixture(
    codes: Tensor, held_out_codes: Tensor, *, seed: int, allowed_s: float | None = None
) -> GaussianMixture:
    """The mixture for `codes` (N, L) whose number of components gives held-out codes (M, L) the most nats.

    Numbers are tried in rising order until one is worse than the one before, or the next would take longer than is
    left of `allowed_s` seconds.
    """
    best, best_nats = None, -float("inf")
    started_s = time.monotonic()
    for num_components in NUM_COMPONENTS:
        if best is not None and len(codes) / num_components < MIN_CODES:
            break
        # Each number takes about twice as long as the one before: as long as all before it together.
        if best is not None and allowed_s is not None and 2.0 * (time.monotonic() - started_s) > allowed_s:
            break
        mixture = fit_mixture(codes, num_components, seed=seed)
        nats = float(mixture.log_prob(held_out_codes).mean())
        if nats <= best_nats:
            break
        best, best_nats = mixture, nats
    assert best is not None
    return best


def _covariance(centred: Tensor, weights: Tensor) -> Tensor:
    """(L, L) from `centred` (N, L), weighted by `weights` (N,)."""
    return (centred * weights.unsqueeze(1)).t() @ centred / weights.sum().clamp(min=1e-9)


def _spread_out(codes: Tensor, num_components: int, generator: torch.Generator) -> Tensor:
    """First means (K, L): codes drawn with probability in their squared distance (k-means++, Arthur 2007)."""
    chosen = [codes[int(torch.randint(len(codes), (), generator=generator))]]
    distances = (codes - chosen[0]).square().sum(dim=1)
    while len(chosen) < num_components:
        chosen.append(codes[int(torch.multinomial(distances + 1e-12, 1, generator=generator))])
        distances = torch.minimum(distances, (codes - chosen[-1]).square().sum(dim=1))
    return torch.stack(chosen)
