"""The diagnosis of a trained model: what its code carries, whether its prior and posterior fit, and in which light.

Letters in shapes: N rows, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from parvae.rows import Arrays
from parvae_pipeline.evaluate import Evaluation, estimate_likelihood, evaluate, posteriors
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import select

ACTIVE_SHARE = 0.01
"""A dimension is active where the posterior means vary by more than this share of the variance of all codes. Burda et
al. (2016) take a variance of 0.01, which is the same under N(0, I); a learned prior has no scale of its own."""
MIN_RATE_NATS, MIN_ACTIVE_SHARE = 1.0, 0.2
"""Below the first the code has collapsed. Below the second it may have in part, or the rows have few degrees of
freedom: those of `waveform` are mixtures of two curves, and three of its 21 dimensions are active."""
AUC_AMBER, AUC_RED = 0.65, 0.8
GAP_AMBER_NATS = 5.0
OVERFIT_AMBER, OVERFIT_RED = 0.05, 0.15
"""Held-out minus training nats, as a share of the distortion in training."""
SKIPPED_AMBER = 0.02
CLASSIFIER_CODES, CLASSIFIER_STEPS, CLASSIFIER_WIDTH = 2_048, 200, 64

Light = Literal["green", "amber", "red"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis card."""

    subject: str
    light: Light
    text: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """What the latent code carries."""

    dimension_nats: tuple[float, ...]
    """(L,) KL from the posterior to a Gaussian with the mean and variance of all codes in that dimension: what it tells
    of a row, under any prior."""
    activities: tuple[float, ...]
    """(L,) share of the variance of the codes that the posterior means make up."""

    @property
    def num_active(self) -> int:
        """Active units."""
        return sum(activity > ACTIVE_SHARE for activity in self.activities)


def describe_code(mean: Tensor, log_variance: Tensor) -> Code:
    """What posteriors (N, L) say of the code."""
    mean, variance = mean.double(), log_variance.double().exp()
    variance_of_means = mean.var(dim=0, correction=0)
    total = variance_of_means + variance.mean(dim=0)
    nats = 0.5 * (total.log() - log_variance.double()).mean(dim=0)
    return Code(dimension_nats=tuple(nats.tolist()), activities=tuple((variance_of_means / total).tolist()))


def prior_mismatch_auc(codes: Tensor, drawn: Tensor, *, seed: int) -> float:
    """How well a small network tells `codes` of rows from codes `drawn` from the prior, (N, L) each.

    Area under the ROC curve on codes that it was not trained on: 0.5 when it cannot; near 1 the prior has holes, and
    what is drawn there decodes to rows that do not exist.
    """
    generator = torch.Generator().manual_seed(seed)
    center, scale = codes.mean(dim=0), codes.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = torch.cat([(codes - center) / scale, (drawn - center) / scale]).clamp(-10.0, 10.0)
    inputs = torch.cat([inputs, inputs.square()], dim=1)
    targets = torch.cat([torch.ones(len(codes)), torch.zeros(len(drawn))])
    order = torch.randperm(len(inputs), generator=generator)
    training, testing = order[: len(order) // 2], order[len(order) // 2 :]
    width = inputs.shape[1]
    first = (torch.randn(width, CLASSIFIER_WIDTH, generator=generator) / width**0.5).requires_grad_()
    bias, last = torch.zeros(CLASSIFIER_WIDTH, requires_grad=True), torch.zeros(CLASSIFIER_WIDTH, requires_grad=True)
    optimizer = torch.optim.AdamW([first, bias, last], lr=1e-2, weight_decay=0.1)
    with torch.enable_grad():
        for _ in range(CLASSIFIER_STEPS):
            logits = functional.silu(inputs[training] @ first + bias) @ last
            loss = functional.binary_cross_entropy_with_logits(logits, targets[training])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    logits = (functional.silu(inputs[testing] @ first + bias) @ last).detach()
    return max(0.5, _area_under_curve(logits, targets[testing]))


@torch.no_grad()
def diagnose(
    model: VariationalAutoencoder,
    training: Arrays,
    held_out: Arrays,
    *,
    evaluation: Evaluation,
    num_steps: int,
    num_skipped: int,
    num_likelihood_rows: int,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures and findings as plain values, from a sample of training rows and the held-out rows.

    `evaluation` is that of the held-out rows.
    """
    some = select(held_out, slice(0, CLASSIFIER_CODES))
    mean, log_variance = posteriors(model, some)
    code = describe_code(mean, log_variance)
    generator = torch.Generator().manual_seed(seed)
    codes = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    drawn = model.prior.sample(torch.randn(len(codes), model.prior.num_noise, generator=generator))
    rows = select(held_out, slice(0, num_likelihood_rows))
    likelihood = estimate_likelihood(model, rows, num_samples=num_samples, seed=seed)
    evaluation_in_training = evaluate(model, training)
    figures = {
        "num_active_units": code.num_active,
        "latent_size": model.latent_size,
        "dimension_nats": [round(nats, 4) for nats in code.dimension_nats],
        "activities": [round(activity, 4) for activity in code.activities],
        "rate_nats": evaluation.rate_nats,
        "prior_auc": prior_mismatch_auc(codes, drawn, seed=seed),
        "bound_gap_nats": evaluate(model, rows).negative_elbo_nats - likelihood.negative_log_likelihood_nats,
        "likelihood_samples": likelihood.num_samples,
        "likelihood_rows": likelihood.num_rows,
        "training_nats": evaluation_in_training.negative_elbo_nats,
        "training_distortion_nats": evaluation_in_training.distortion_nats,
        "held_out_nats": evaluation.negative_elbo_nats,
        "skipped_share": num_skipped / max(1, num_steps),
    }
    return {**figures, "findings": [vars(finding) for finding in findings(figures)]}


def findings(figures: Mapping[str, Any]) -> list[Finding]:
    """The card: one line for each question that a user should ask."""
    num_active, latent_size = figures["num_active_units"], figures["latent_size"]
    rate, auc, gap = figures["rate_nats"], figures["prior_auc"], figures["bound_gap_nats"]
    few = num_active < MIN_ACTIVE_SHARE * latent_size
    overfit_nats = figures["held_out_nats"] - figures["training_nats"]
    overfit = overfit_nats / max(1.0, abs(figures["training_distortion_nats"]))
    return [
        Finding(
            subject="latent code",
            light="red" if rate < MIN_RATE_NATS else "amber" if few else "green",
            text=f"{num_active} of {latent_size} dimensions are active; a row's code holds {rate:.2f} nats",
        ),
        Finding(
            subject="prior",
            light=_light(auc, AUC_AMBER, AUC_RED),
            text=f"a classifier tells codes of rows from codes of the prior with an AUC of {auc:.3f} (0.5: cannot)",
        ),
        Finding(
            subject="posterior",
            light=_light(gap, GAP_AMBER_NATS, 2 * GAP_AMBER_NATS),
            text=f"the ELBO is {gap:.2f} nats below the importance-weighted bound "
            f"(S = {figures['likelihood_samples']}, n = {figures['likelihood_rows']} rows)",
        ),
        Finding(
            subject="overfitting",
            light=_light(overfit, OVERFIT_AMBER, OVERFIT_RED),
            text=f"held-out rows cost {overfit_nats:+.2f} nats beside training rows",
        ),
        Finding(
            subject="stability",
            light="amber" if figures["skipped_share"] > SKIPPED_AMBER else "green",
            text=f"{figures['skipped_share']:.2%} of the steps were skipped",
        ),
    ]


def _light(value: float, amber: float, red: float) -> Light:
    return "red" if value > red else "amber" if value > amber else "green"


def _area_under_curve(scores: Tensor, targets: Tensor) -> float:
    """Of the ROC curve, by ranks (Mann and Whitney 1947)."""
    ranks = scores.argsort().argsort().double() + 1.0
    positive = targets > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return 0.5
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
