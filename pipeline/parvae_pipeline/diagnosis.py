"""The diagnosis of a trained model: what its code carries, whether its prior and posterior fit, and in which light.

Letters in shapes: N rows, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from parvae.rows import Arrays
from parvae_pipeline.evaluate import Evaluation, estimate_likelihood, evaluate, posteriors
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.progress import Progress
from parvae_pipeline.reader import select

ACTIVE_SHARE = 0.01
"""A dimension is active where the posterior means vary by more than this share of the variance of all codes. Burda et
al. (2016) take a variance of 0.01, which is the same under N(0, I); a learned prior has no scale of its own."""
MIN_RATE_NATS, MIN_ACTIVE_SHARE = 1.0, 0.2
"""Below the first the code has collapsed. Below the second it may have in part, or the rows have few degrees of
freedom: those of `waveform` are mixtures of two curves, and three of its 21 dimensions are active."""
AUC_AMBER, AUC_RED = 0.65, 0.8
GAP_AMBER_NATS, GAP_AMBER_SHARE = 5.0, 0.01
"""Of the bound: the larger one of some nats, and a share of what a row costs; an image takes thousands of nats."""
OVERFIT_AMBER, OVERFIT_RED = 0.05, 0.15
"""Held-out minus training nats, as a share of the distortion in training."""
SKIPPED_AMBER = 0.02
YOUNG_STEPS = 1_000
"""A model of fewer steps may well have faults that more time mends."""
CLASSIFIER_CODES, CLASSIFIER_STEPS, CLASSIFIER_WIDTH = 2_048, 200, 64

Light = Literal["green", "amber", "red"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis card."""

    subject: str
    light: Light
    text: str
    advice: str = ""
    """What was done about it, or what can be; nothing where the light is green."""

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


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
    progress: Progress,
    learned_on_nats: float,
    num_likelihood_rows: int,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures and findings as plain values, from a sample of training rows and the held-out rows.

    `evaluation` is that of the held-out rows, `learned_on_nats` what they gained as the encoder learned on alone.
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
        "skipped_share": progress.num_skipped / max(1, progress.step),
        "num_steps": progress.step,
        "dearer_nats": max(0.0, progress.last_nats - progress.best_nats),
        "warmed_up_again": progress.second_warmup_at is not None,
        "began_again": bool(progress.overfitted_at),
        "learned_on_nats": learned_on_nats,
    }
    return {**figures, "findings": [vars(finding) for finding in findings(figures)]}


def findings(figures: Mapping[str, Any]) -> list[Finding]:
    """The card: one line for each question that a user should ask."""
    found = [_code(figures), _prior(figures), _posterior(figures), _overfitting(figures), _stability(figures)]
    return [replace(finding, advice="") if finding.light == "green" else finding for finding in found]


def overfitting_share(gap_nats: float, distortion_nats: float) -> float:
    """What rows cost beyond others, or beyond what they cost before, as a share of the distortion."""
    return gap_nats / max(1.0, abs(distortion_nats))


def _code(figures: Mapping[str, Any]) -> Finding:
    num_active, latent_size, rate_nats = figures["num_active_units"], figures["latent_size"], figures["rate_nats"]
    is_empty, are_few = rate_nats < MIN_RATE_NATS, num_active < MIN_ACTIVE_SHARE * latent_size
    if not is_empty:
        advice = "the rows may have few degrees of freedom; idle dimensions cost nothing"
    elif figures["warmed_up_again"]:
        advice = "training warmed up again with free bits; the columns may tell nothing of one another"
    else:
        advice = "train longer, or see whether the columns tell anything of one another"
    return Finding(
        subject="latent code",
        light="red" if is_empty else "amber" if are_few else "green",
        text=f"{num_active} of {latent_size} dimensions are active; a row's code holds {rate_nats:.2f} nats",
        advice=advice,
    )


def _prior(figures: Mapping[str, Any]) -> Finding:
    auc = figures["prior_auc"]
    return Finding(
        subject="prior",
        light=_light(auc, AUC_AMBER, AUC_RED),
        text=f"a classifier tells codes of rows from codes of the prior with an AUC of {auc:.3f} (0.5: cannot)",
        advice=f"the prior that held-out codes like best is taken; {_remedy(figures)}",
    )


def _posterior(figures: Mapping[str, Any]) -> Finding:
    gap_nats = figures["bound_gap_nats"]
    amber_nats = max(GAP_AMBER_NATS, GAP_AMBER_SHARE * abs(figures["held_out_nats"]))
    is_young = figures["num_steps"] < YOUNG_STEPS
    return Finding(
        subject="posterior",
        light=_light(gap_nats, amber_nats, 2 * amber_nats),
        text=f"the ELBO is {gap_nats:.2f} nats below the importance-weighted bound "
        f"(S = {figures['likelihood_samples']}, n = {figures['likelihood_rows']} rows)",
        # Of binmnist it is 5.2 nats after 10 minutes, and 5.7 after 60.
        advice=_remedy(figures) if is_young else "the model is that much better than its ELBO says",
    )


def _overfitting(figures: Mapping[str, Any]) -> Finding:
    """Red only where held-out rows grew a good deal dearer and nothing was done: the weights that are kept are always
    those that they cost least with."""
    gap_nats = figures["held_out_nats"] - figures["training_nats"]
    share = overfitting_share(gap_nats, figures["training_distortion_nats"])
    grew_dearer = _grew_dearer(figures)
    light = _light(share, OVERFIT_AMBER, OVERFIT_RED)
    repairs = _repairs_of_overfitting(figures)
    if repairs:
        advice = "; ".join([*repairs, "more rows would narrow it"])
    elif grew_dearer:
        advice = "the weights from before they grew dearer are kept; more rows, or --set train.dropout=0.2"
    else:
        advice = "they grew hardly dearer to the end, so no harm was done; more rows would narrow it"
    return Finding(
        subject="overfitting",
        light="amber" if light == "red" and (repairs or not grew_dearer) else light,
        text=f"held-out rows cost {gap_nats:+.2f} nats beside training rows",
        advice=advice,
    )


def _repairs_of_overfitting(figures: Mapping[str, Any]) -> list[str]:
    repairs = []
    if figures["began_again"]:
        repairs.append("training went back to the best weights and on with dropout")
    gained_nats = figures["learned_on_nats"]
    if gained_nats > 0.0:
        repairs.append(f"the encoder learned on from drawn rows, which took {gained_nats:.2f} nats off held-out rows")
    return repairs


def _stability(figures: Mapping[str, Any]) -> Finding:
    return Finding(
        subject="stability",
        light="amber" if figures["skipped_share"] > SKIPPED_AMBER else "green",
        text=f"{figures['skipped_share']:.2%} of the steps were skipped",
        advice="the gradients were out of range; look for extreme values, or lower train.learning_rate",
    )


def _remedy(figures: Mapping[str, Any]) -> str:
    """What brings codes, prior and rows closer: time, or where that was enough, rows."""
    if _repairs_of_overfitting(figures) or _grew_dearer(figures):
        return "more rows would narrow it"
    num_steps = figures["num_steps"]
    young = f"{num_steps:,} steps are few: " if num_steps < YOUNG_STEPS else ""
    return f"{young}a longer --budget narrows it"


def _grew_dearer(figures: Mapping[str, Any]) -> bool:
    """Whether held-out rows cost a good deal more at the end than they had before."""
    return overfitting_share(figures["dearer_nats"], figures["training_distortion_nats"]) > OVERFIT_AMBER


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
