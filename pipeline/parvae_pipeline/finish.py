"""The end of a run: what the encoder can win back, surplus dimensions, the best prior, the fixed points of the score,
the diagnosis."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parvae.rows import Arrays
from parvae_pipeline.amortization import narrow_amortization_gap
from parvae_pipeline.config import RunSettings
from parvae_pipeline.diagnosis import diagnose, findings
from parvae_pipeline.evaluate import Evaluation, balance_score, evaluate, posteriors, with_rate_of
from parvae_pipeline.mixture import choose_mixture
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.priors import Prior, StandardNormal
from parvae_pipeline.progress import Progress
from parvae_pipeline.reader import Reader, select
from parvae_pipeline.surplus import without_surplus

SAMPLED_SHARE, MIN_SAMPLED_ROWS, MAX_SAMPLED_ROWS = 0.02, 1_000, 10_000
"""Training rows whose codes the mixture is fitted to, as a share of the rows trained on: a few seconds of minutes."""
MIXTURE_SHARE = 0.02
"""Share of a time budget that fitting mixtures may take."""
MIN_JUDGING_CODES = 2_048
"""Codes that priors are judged by; of few rows several each. By one code for each of the 30 held-out rows of ADBench's
stamps a rate is off by some 0.4 nats."""
EVALUATED_SHARE, MIN_EVALUATED_ROWS, MAX_EVALUATED_ROWS = 0.01, 256, 4_096
"""Training rows that the held-out ones are compared with, as a share of the rows trained on."""
LIKELIHOOD_SAMPLES, LIKELIHOOD_SHARE, MAX_LIKELIHOOD_ROWS = 100, 0.005, 256
"""Decodings that the gap of the bound may take, as a share of the rows trained on."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A model ready for its checkpoint."""

    model: VariationalAutoencoder
    events: list[dict[str, Any]]
    """What was done and why, and what was found that is not well: one `message` each."""
    evaluation: Evaluation
    """Of the held-out rows."""
    diagnosis: dict[str, Any]


def finish(
    model: VariationalAutoencoder,
    reader: Reader,
    held_out: Arrays,
    settings: RunSettings,
    *,
    evaluation: Evaluation | None,
    progress: Progress,
    deadline_s: float | None,
    device: torch.device,
) -> Finished:
    """Let the encoder learn on, drop surplus dimensions, choose the prior (by held-out nats unless one was named),
    balance the score, and look.

    `evaluation` is that of `model` on the held-out rows, where there was one. The encoder learns on `device` and has
    until `deadline_s` (time.monotonic); what follows takes a bounded share of the time of training, which
    `trainer.TIME_KEPT_BACK` allows for.
    """
    seed, budget_s = settings.train.seed, settings.train.budget_s
    rows_trained = progress.step * reader.batch_size
    num_evaluated = int(np.clip(EVALUATED_SHARE * rows_trained, MIN_EVALUATED_ROWS, MAX_EVALUATED_ROWS))
    training = _training_rows(
        reader, int(np.clip(SAMPLED_SHARE * rows_trained, MIN_SAMPLED_ROWS, MAX_SAMPLED_ROWS)), first_step=progress.step
    )
    evaluation = evaluation or evaluate(model, held_out)
    some = select(training, slice(0, num_evaluated))
    trained_nats = evaluation.negative_elbo_nats
    model, evaluation, events = narrow_amortization_gap(
        model,
        some,
        held_out,
        evaluation,
        reader,
        settings.train,
        num_steps=progress.step,
        deadline_s=deadline_s,
        device=device,
    )
    learned_on_nats = trained_nats - evaluation.negative_elbo_nats
    model, evaluation, dropped = without_surplus(model, training, held_out, evaluation)
    trained = model
    model, event = choose_prior(
        model,
        training,
        held_out,
        named=settings.model.prior,
        seed=seed,
        mixture_s=None if budget_s is None else MIXTURE_SHARE * budget_s,
    )
    if model is not trained:
        evaluation = with_rate_of(evaluation, model, held_out)
    balance_score(model, held_out, rows_trained=rows_trained, seed=seed)
    diagnosis = diagnose(
        model,
        some,
        held_out,
        evaluation=evaluation,
        progress=progress,
        learned_on_nats=learned_on_nats,
        num_likelihood_rows=int(np.clip(LIKELIHOOD_SHARE * rows_trained / LIKELIHOOD_SAMPLES, 8, MAX_LIKELIHOOD_ROWS)),
        num_samples=LIKELIHOOD_SAMPLES,
        seed=seed,
    )
    found = [
        {"event": "finding", "message": f"{finding.subject} {finding.light}: {finding}"}
        for finding in findings(diagnosis)
        if finding.light != "green"
    ]
    return Finished(model=model, events=[*events, *dropped, event, *found], evaluation=evaluation, diagnosis=diagnosis)


@torch.no_grad()
def choose_prior(
    model: VariationalAutoencoder,
    training: Arrays,
    held_out: Arrays,
    *,
    named: str,
    seed: int,
    mixture_s: float | None = None,
) -> tuple[VariationalAutoencoder, dict[str, Any]]:
    """The model with the prior under which held-out codes cost the fewest nats, and an event that says why.

    The prior that was trained along stays unless another is better by more than the standard error of the difference;
    a prior that was `named` is taken whatever it costs. Fitting mixtures takes about `mixture_s` seconds at most.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = _draw(*posteriors(model, training), generator)
    mean, log_variance = posteriors(model, held_out)
    num_rows = len(mean)
    num_draws = max(1, MIN_JUDGING_CODES // max(1, num_rows))
    mean, log_variance = mean.repeat(num_draws, 1), log_variance.repeat(num_draws, 1)
    held_out_codes = _draw(mean, log_variance, generator)
    trained = model.architecture.prior
    candidates: dict[str, Prior] = {trained: model.prior}
    candidates.setdefault("normal", StandardNormal(model.latent_size))
    if named in ("auto", "mixture"):  # fitting it takes time
        candidates["mixture"] = choose_mixture(codes, held_out_codes, seed=seed, allowed_s=mixture_s)
    entropy = model.posterior_log_prob(held_out_codes, mean, log_variance)
    rates = {
        name: (entropy - prior.log_prob(held_out_codes)).reshape(num_draws, num_rows).mean(dim=0)
        for name, prior in candidates.items()
    }
    best = min(rates, key=lambda name: float(rates[name].mean()))
    gains = rates[trained] - rates[best]
    standard_error = float(gains.std(correction=0)) / max(1, len(gains)) ** 0.5
    chosen = named if named in candidates else (best if float(gains.mean()) > standard_error else trained)
    figures = {name: round(float(rate.mean()), 4) for name, rate in rates.items()}
    listed = ", ".join(f"{name} {nats:.2f}" for name, nats in sorted(figures.items(), key=lambda pair: pair[1]))
    reason = "as named" if named in candidates else "the fewest" if chosen == best else "within the standard error"
    message = f"prior: {chosen} ({reason}); nats a row of held-out codes: {listed}"
    event = {"event": "prior", "prior": chosen, "rate_nats": figures, "message": message}
    return with_prior(model, chosen, candidates[chosen]), event


def with_prior(model: VariationalAutoencoder, name: str, prior: Prior) -> VariationalAutoencoder:
    """The same model with another prior."""
    if name == model.architecture.prior:
        return model
    num_components = getattr(prior, "num_components", 1)
    architecture = dataclasses.replace(model.architecture, prior=name, num_components=num_components)
    result = VariationalAutoencoder(model.schema, architecture)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("prior.")}
    result.load_state_dict({**weights, **{f"prior.{key}": value for key, value in prior.state_dict().items()}})
    return result


def _draw(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    return mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)


def _training_rows(reader: Reader, num_rows: int, *, first_step: int) -> Arrays:
    """Training rows in the order of the reader."""
    batches: list[dict[str, Tensor]] = []
    num_batches = min(reader.steps_per_epoch, -(-num_rows // reader.batch_size))
    for batch in reader.batches(first_step):
        batches.append({name: tensor.clone() for name, tensor in batch.items()})
        if len(batches) == num_batches:
            break
    rows = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
    return select(rows, slice(0, num_rows))
