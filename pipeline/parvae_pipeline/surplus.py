"""Latent dimensions that say nothing of a row: made the same for every row, and left out of what is exported as code.

The prior goes on to know them, so that with them as constants the ELBO is the bound that it was.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from parvae.rows import Arrays
from parvae_pipeline.diagnosis import ACTIVE_SHARE, describe_code
from parvae_pipeline.evaluate import Evaluation, evaluate, posteriors
from parvae_pipeline.model import VariationalAutoencoder

MAX_LOST_NATS = 0.02
"""A row may cost this much more without them: below what two evaluations with other noise differ by."""


@torch.no_grad()
def without_surplus(
    model: VariationalAutoencoder, training: Arrays, held_out: Arrays, evaluation: Evaluation
) -> tuple[VariationalAutoencoder, Evaluation, list[dict[str, Any]]]:
    """The model with its inactive dimensions made surplus, its evaluation, and what was done, as an event.

    `evaluation` is that of `model` on the held-out rows. The codes of an autoencoder stay whole: they have no spread
    for a dimension to vanish in. So do those of which nothing would be left, and those of rows that would cost more.
    """
    mean, log_variance = posteriors(model, training)
    activities = describe_code(mean, log_variance).activities
    surplus = [dimension for dimension, activity in enumerate(activities) if activity <= ACTIVE_SHARE]
    if model.architecture.kind == "autoencoder" or not 0 < len(surplus) < model.latent_size:
        return model, evaluation, []
    architecture = dataclasses.replace(model.architecture, surplus=tuple(surplus))
    result = VariationalAutoencoder(model.schema, architecture)
    result.load_state_dict(model.state_dict())
    dimensions = torch.tensor(surplus)
    means, variances = mean[:, dimensions], log_variance[:, dimensions].exp()
    centre = means.mean(dim=0)
    result.encoder.head.hold(dimensions, centre, (means.var(dim=0, correction=0) + variances.mean(dim=0)).log())
    for layer in result.decoder.code_layers:
        layer.bias.add_(layer.weight[:, dimensions] @ centre)
        layer.weight[:, dimensions] = 0.0
    found = evaluate(result, held_out)
    lost_nats = found.negative_elbo_nats - evaluation.negative_elbo_nats
    kept = model.latent_size - len(surplus)
    if lost_nats > MAX_LOST_NATS:
        message = f"code: all {model.latent_size} dimensions stay; {kept} would cost {lost_nats:.3f} nats a row more"
        return model, evaluation, [{"event": "surplus", "surplus": [], "message": message}]
    message = f"code: {kept} of {model.latent_size} dimensions are active; the others are left out of exported codes"
    return result, found, [{"event": "surplus", "surplus": surplus, "message": message}]
