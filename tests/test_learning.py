"""Does it learn? Data whose density is known in closed form, a few hundred steps, and the distance to the truth."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import architecture, encoded
from numpy.typing import NDArray
from scipy import stats

from parvae.rows import Arrays
from parvae.schema import NumericFacts, Schema
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import select
from parvae_pipeline.schedule import Schedule
from parvae_pipeline.split import Split
from parvae_pipeline.trainer import Trainer

NUM_ROWS = 16_000
TOLERANCE_NATS = 0.1


def trained_nats(schema: Schema, rows: Arrays, held_out: NDArray[np.bool_], *, latent_size: int, steps: int) -> float:
    """Negative ELBO of the held-out rows after training on the others: nats a row, densities per unit of the data."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(latent_size=latent_size, width=32, depth=1))
    training = select(rows, ~held_out)
    model.start_from({name: torch.from_numpy(array[:4096]) for name, array in training.items()})
    trainer = Trainer(
        model=model,
        reader=MemoryReader(training, batch_size=256, seed=0),
        held_out=select(rows, held_out),
        settings=TrainSettings(seed=0),
        schedule=Schedule(total_steps=steps, peak_rate=5e-3, warmup_share=0.1, beta=1.0),
        deadline_s=None,
        report=lambda report: None,
        save=lambda trainer: None,
    )
    trainer.fit()
    model.load_state_dict(trainer.best)
    return sampled_nats(model, select(rows, held_out)) + mean_log_units(schema, select(rows, held_out))


def mean_log_units(schema: Schema, rows: Arrays) -> float:
    """Nats a row from densities per standard deviation to densities per unit: log stddev of every number present."""
    stddevs = [column.facts.stddev for column in schema.modelled if isinstance(column.facts, NumericFacts)]
    if not stddevs:
        return 0.0
    return float((np.isfinite(rows["numeric"]) * np.log(stddevs)).sum(axis=1).mean())


@torch.no_grad()
def sampled_nats(model: VariationalAutoencoder, rows: Arrays) -> float:
    """The negative ELBO by eight draws of the code for every row: without bias, its standard error about 0.01 nats."""
    raw = {name: torch.from_numpy(array) for name, array in rows.items()}
    num_rows = len(next(iter(rows.values())))
    generator = torch.Generator().manual_seed(7)
    draws = [
        model.elbo_terms(raw, torch.randn(num_rows, model.latent_size, generator=generator)).negative_elbo_nats
        for _ in range(8)
    ]
    return float(torch.stack(draws).double().mean())


def split(num_rows: int) -> NDArray[np.bool_]:
    return Split.of(num_rows, share=0.25, max_rows=num_rows, seed=0).held_out()


LOADINGS, NOISE_SCALES, LOCATION = np.array([20.0, -3.0, 0.8]), np.array([5.0, 1.0, 0.5]), np.array([170.0, 5.0, 0.0])


@pytest.fixture(scope="module")
def correlated() -> tuple[pa.Table, float]:
    """Three numbers from one factor and noise, and their exact nats a row on the held-out rows."""
    rng = np.random.default_rng(1)
    x = LOCATION + rng.normal(size=(NUM_ROWS, 1)) * LOADINGS + rng.normal(size=(NUM_ROWS, 3)) * NOISE_SCALES
    truth = stats.multivariate_normal(LOCATION, np.outer(LOADINGS, LOADINGS) + np.diag(NOISE_SCALES**2))
    exact = -float(truth.logpdf(x[split(NUM_ROWS)]).mean())
    # The sample agrees with the closed form, so the figure below is the entropy.
    assert exact == pytest.approx(float(truth.entropy()), abs=0.05)
    return pa.table({name: x[:, index] for index, name in enumerate("abc")}), exact


@pytest.mark.parametrize("latent_size", [1, 2, 4, 8])
def test_it_learns_a_correlated_gaussian_with_or_without_spare_dimensions(
    correlated: tuple[pa.Table, float], latent_size: int
) -> None:
    table, exact = correlated
    schema, rows = encoded(table)
    found = trained_nats(schema, rows, split(NUM_ROWS), latent_size=latent_size, steps=700)
    covariance = np.outer(LOADINGS, LOADINGS) + np.diag(NOISE_SCALES**2)
    independent = sum(stats.norm(0.0, math.sqrt(variance)).entropy() for variance in np.diag(covariance))
    assert independent - exact > 4.0 * TOLERANCE_NATS, "a model of the columns one by one must not pass"
    assert exact - 0.03 < found < exact + TOLERANCE_NATS


def test_it_learns_a_mixture_of_categories() -> None:
    rng = np.random.default_rng(2)
    weights = np.array([0.5, 0.3, 0.2])
    # (mixture component, column, level)
    levels = np.array(
        [
            [[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.85, 0.1, 0.05], [0.9, 0.05, 0.05]],
            [[0.05, 0.9, 0.05], [0.05, 0.9, 0.05], [0.1, 0.85, 0.05], [0.05, 0.9, 0.05]],
            [[0.05, 0.05, 0.9], [0.05, 0.05, 0.9], [0.05, 0.1, 0.85], [0.05, 0.05, 0.9]],
        ]
    )
    component = rng.choice(3, size=NUM_ROWS, p=weights)
    values = np.stack(
        [(rng.random((NUM_ROWS, 1)) > levels[component, column].cumsum(axis=1)).sum(axis=1) for column in range(4)],
        axis=1,
    )
    likelihoods = np.prod([levels[:, column, values[:, column]] for column in range(4)], axis=0)  # (3, rows)
    nats = -np.log(weights @ likelihoods)
    joint = np.einsum("m,ma,mb,mc,md->abcd", weights, *np.moveaxis(levels, 1, 0))
    entropy = float(-(joint * np.log(joint)).sum())
    held_out = split(NUM_ROWS)
    exact = float(nats[held_out].mean())
    assert exact == pytest.approx(entropy, abs=0.05)

    names = np.array(["red", "green", "blue"])
    table = pa.table({f"c{column}": pa.array(names[values[:, column]].tolist()) for column in range(4)})
    schema, rows = encoded(table)
    found = trained_nats(schema, rows, held_out, latent_size=2, steps=900)
    marginals = [stats.entropy(np.moveaxis(joint, column, 0).reshape(3, -1).sum(axis=1)) for column in range(4)]
    assert sum(marginals) - exact > 1.0, "a model of the columns one by one must not pass"
    # No Gaussian posterior over a normal code is the exact one of three discrete components: about 0.15 nats are lost.
    assert exact - 0.03 < found < exact + 0.2


def test_it_learns_which_values_are_missing_together() -> None:
    # Two columns are null in the same 30 % of the rows: the second null is free once the first is known.
    rng = np.random.default_rng(3)
    missing = rng.random(NUM_ROWS) < 0.3
    x = rng.normal(size=(NUM_ROWS, 2))
    table = pa.table({name: pa.array(x[:, index], mask=missing) for index, name in enumerate("ab")})
    held_out = split(NUM_ROWS)
    share = missing[held_out].mean()
    gaussian_nats = float(-stats.norm.logpdf(x[held_out][~missing[held_out]]).sum() / held_out.sum())
    presence_nats = float(stats.entropy([share, 1.0 - share]))
    schema, rows = encoded(table)
    found = trained_nats(schema, rows, held_out, latent_size=2, steps=900)
    exact = gaussian_nats + presence_nats
    # As above: two discrete components, one normal code.
    assert exact - 0.03 < found < exact + 0.2
    assert found < gaussian_nats + 2.0 * presence_nats - 0.3, "a model of the columns one by one must not pass"
