"""What a run chooses where its settings leave it open: architecture, sizes, dropout, batches, the schedule."""

from __future__ import annotations

import dataclasses

import numpy as np

from parvae.schema import BooleanFacts, CategoryFacts, ImageFacts, NumericFacts, Schema, VectorFacts
from parvae_pipeline.config import ModelSettings, RunSettings, TrainSettings
from parvae_pipeline.evaluate import evaluation_cost
from parvae_pipeline.model import Architecture
from parvae_pipeline.reader import Reader
from parvae_pipeline.schedule import MIN_EVALUATION_STEPS, Schedule
from parvae_pipeline.trainer import EVALUATED_ROW_COST
from parvae_pipeline.world import World

EPOCHS, EPOCHS_WITH_BUDGET = 100, 1_000
MIN_STEPS, MAX_STEPS = 1_500, 20_000
CONTAMINATED_STEPS = 500
"""A model learns first what most rows have in common: stopped early, it has not learned the anomalies among them."""
MIN_CONVOLUTION_SIDE = 16
CHANNELS, NARROW_CHANNELS, MIN_EPOCHS_OF_WIDE = 32, 16, 20
"""Feature maps, fewer where the time is short: on MNIST 16 reach 705 nats in the 4 minutes in which 32 reach 713."""
WIDE_TABLE, MIN_EPOCHS_OF_WIDE_TABLE, DROPOUT_OF_WIDE = 512, 300, 0.1
"""Hidden units where there is time for so many epochs of the default, and the share that a step leaves out. Binarised
MNIST, 60 minutes on one core: negative log-likelihood of 500 test rows 81.3 nats; without dropout, training overfits
from a third of the time on, and ends at 82.0."""
MIN_ROWS_FOR_FLOW = 5_000
MIN_BATCH, MAX_BATCH = 128, 1024
STEPS_PER_EPOCH = 200
MANY_ROWS, MIN_BATCH_OF_MANY = 20_000, 256
"""A step of 256 rows takes 1.4 times as long as one of 128 where the network is small (Adult: 19.2 and 14.0 ms). Adult,
5 minutes on one core, 128 and 256: 17.11 and 17.02 nats a row held out; a classifier trained on drawn rows reaches an
AUC of 0.897 and 0.904."""
MAX_EVALUATION_SHARE = 0.04
"""Share of the training that evaluations may take."""
MIN_EVALUATIONS = 4
MAX_LATENT_SIZE = 40


def choose_architecture(settings: ModelSettings, schema: Schema) -> Architecture:
    """Settings that were left open, chosen from the data."""
    # On one core, 2 minutes of binarised MNIST: 90.6 nats with 300 units, 90.9 with 512 (fewer steps).
    width = settings.width or (256 if schema.num_rows < 50_000 else 300)
    return Architecture(
        network=choose_network(schema) if settings.network == "auto" else settings.network,
        prior=choose_trained_prior(schema, settings.prior, settings.kind),
        latent_size=settings.latent_size or choose_latent_size(schema),
        width=width,
        depth=settings.depth,
        channels=settings.channels or CHANNELS,
        likelihood=settings.likelihood,
        kind=settings.kind,
        denoising=settings.denoising,
    )


def has_open_size(settings: RunSettings, architecture: Architecture, num_training_rows: int) -> bool:
    """Whether the size of the network may follow from the time: it was not named, and there is something to choose."""
    if architecture.network == "image":
        return settings.model.channels is None
    is_timed = settings.train.budget_s is not None and settings.train.max_steps is None
    return is_timed and settings.model.width is None and num_training_rows >= MANY_ROWS


def sized_for(architecture: Architecture, num_epochs: float) -> Architecture:
    """The network that is best in the time for so many epochs of the one at hand."""
    if architecture.network == "image":
        enough = num_epochs >= MIN_EPOCHS_OF_WIDE
        return architecture if enough else dataclasses.replace(architecture, channels=NARROW_CHANNELS)
    enough = num_epochs >= MIN_EPOCHS_OF_WIDE_TABLE
    return dataclasses.replace(architecture, width=WIDE_TABLE) if enough else architecture


def choose_dropout(settings: RunSettings, architecture: Architecture) -> float | None:
    """What is named, or some where the time made the network wide: it would learn its rows by heart.

    None leaves it to the trainer, which takes some once it sees that happen.
    """
    if settings.train.dropout is not None:
        return settings.train.dropout
    became_wide = settings.model.width is None and architecture.width == WIDE_TABLE
    return DROPOUT_OF_WIDE if architecture.network == "table" and became_wide else None


def choose_network(schema: Schema) -> str:
    """Convolutions from 16 pixels a side on; below, 8 x 8 digits train three times faster to the same ELBO without."""
    images = [column.facts for column in schema if isinstance(column.facts, ImageFacts)]
    return "image" if images and min(images[-1].height, images[-1].width) >= MIN_CONVOLUTION_SIDE else "table"


def choose_trained_prior(schema: Schema, named: str, kind: str = "vae") -> str:
    """A learned prior where there are rows enough to learn it from, and where nothing else gives codes a shape.

    A mixture is fitted after training.
    """
    automatic = "realnvp" if kind == "autoencoder" or schema.num_rows >= MIN_ROWS_FOR_FLOW else "normal"
    return {"auto": automatic, "mixture": "normal"}.get(named, named)


def choose_latent_size(schema: Schema) -> int:
    """As many dimensions as the rows could need, at most 40.

    With a learned scale, surplus ones switch off by themselves (Dai and Wipf 2019).
    """
    needed = 0
    for column in schema.modelled:
        if isinstance(column.facts, (NumericFacts, BooleanFacts)):
            needed += 1
        elif isinstance(column.facts, CategoryFacts):
            needed += max(1, int(np.ceil(np.log2(len(column.facts.levels)))))
        elif isinstance(column.facts, VectorFacts):
            needed += column.facts.size
        elif isinstance(column.facts, ImageFacts):
            needed += column.facts.height * column.facts.width * column.facts.channels
    return max(2, min(MAX_LATENT_SIZE, needed))


def choose_batch_size(num_training_rows: int) -> int:
    """A power of two that leaves about 200 steps an epoch, and at least 128; 256 where there are many rows."""
    least = MIN_BATCH_OF_MANY if num_training_rows >= MANY_ROWS else MIN_BATCH
    return int(np.clip(2 ** int(np.log2(max(1, num_training_rows / STEPS_PER_EPOCH))), least, MAX_BATCH))


def choose_schedule(settings: TrainSettings, reader: Reader, num_held_out_rows: int, world: World) -> Schedule:
    """About 100 epochs; up to 1,000 where a budget was named, which then fits the length to the time.

    A run on contaminated rows is short.
    """
    if settings.max_steps is not None:
        total_steps = settings.max_steps
    elif settings.contaminated:
        total_steps = CONTAMINATED_STEPS
    elif settings.budget_s is not None:
        total_steps = max(MIN_STEPS, EPOCHS_WITH_BUDGET * reader.steps_per_epoch)
    else:
        total_steps = int(np.clip(EPOCHS * reader.steps_per_epoch, MIN_STEPS, MAX_STEPS))
    batch_size = reader.batch_size * world.size
    steps_an_evaluation = evaluation_cost(num_held_out_rows) * EVALUATED_ROW_COST / batch_size
    rare_enough = round(steps_an_evaluation / MAX_EVALUATION_SHARE)
    return Schedule(
        total_steps=total_steps,
        min_evaluation_steps=max(MIN_EVALUATION_STEPS, min(rare_enough, total_steps // MIN_EVALUATIONS)),
        peak_rate=settings.learning_rate or 2e-3 * (batch_size / 128) ** 0.5,
        warmup_share=settings.warmup_share,
        beta=settings.beta,
    )
