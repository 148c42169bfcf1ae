"""The encoder that learns on from drawn rows: when it does, what it may change, and that rows only gain."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import architecture, encoded, quick_settings, write_parquet
from trainers import Rows, assert_same_weights

from parvae.rows import Arrays
from parvae_pipeline import amortization
from parvae_pipeline.amortization import ROUND_STEPS, may_learn_on, narrow_amortization_gap
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.evaluate import Evaluation, evaluate
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import select
from parvae_pipeline.train import train

Narrowed = tuple[VariationalAutoencoder, Evaluation, list[dict[str, Any]]]
BATCH_SIZE, NUM_TRAINING, LATENT_SIZE = 32, 64, 8


def factor_table(num_rows: int) -> pa.Table:
    """Twenty numbers that five factors make, and noise."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 20))
    values = rng.normal(size=(num_rows, 5)) @ mixing + 0.3 * rng.normal(size=(num_rows, 20))
    return pa.table({f"x{index}": values[:, index] for index in range(20)})


def few_rows() -> Rows:
    schema, encoded_rows = encoded(factor_table(NUM_TRAINING + 200))
    rows = {name: np.array(array) for name, array in encoded_rows.items()}  # torch wants to own them
    return schema, select(rows, slice(0, NUM_TRAINING)), select(rows, slice(NUM_TRAINING, None))


@pytest.fixture(scope="module")
def learned_by_heart() -> VariationalAutoencoder:
    """A network far too large for its rows, trained far too long."""
    schema, training, _ = few_rows()
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(latent_size=LATENT_SIZE, width=64, depth=2))
    model.start_from({name: torch.from_numpy(array) for name, array in training.items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = MemoryReader(training, batch_size=BATCH_SIZE, seed=0).batches(0)
    for _ in range(400):
        loss = model.elbo_terms(next(batches), torch.randn(BATCH_SIZE, LATENT_SIZE)).negative_elbo_nats.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model.eval()


def narrowed(
    model: VariationalAutoencoder,
    *,
    held_out: Arrays | None = None,
    num_steps: int = 500,
    deadline_s: float | None = None,
    **settings: Any,
) -> Narrowed:
    _, training, others = few_rows()
    held_out = others if held_out is None else held_out
    reader = MemoryReader(training, batch_size=BATCH_SIZE, seed=0)
    return narrow_amortization_gap(
        model,
        training,
        held_out,
        evaluate(model, held_out),
        reader,
        TrainSettings(**settings),
        num_steps=num_steps,
        deadline_s=deadline_s,
    )


def test_held_out_rows_gain_by_the_encoder_alone(learned_by_heart: VariationalAutoencoder) -> None:
    weights = copy.deepcopy(learned_by_heart.state_dict())
    before = evaluate(learned_by_heart, few_rows()[2])
    model, evaluation, events = narrowed(learned_by_heart)
    assert evaluation.negative_elbo_nats < before.negative_elbo_nats - 0.5
    assert evaluation == evaluate(model, few_rows()[2])
    assert_same_weights(learned_by_heart.state_dict(), weights)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    assert changed
    assert {name.split(".")[0] for name in changed} == {"encoder"}
    (event,) = events
    assert event["event"] == "amortization"
    assert event["message"].startswith(
        f"repair: held-out rows cost {evaluation.negative_elbo_nats:.2f} nats, and {before.negative_elbo_nats:.2f} "
    )


def test_rows_that_were_never_looked_at_gain_too(learned_by_heart: VariationalAutoencoder) -> None:
    chosen_by, others = select(few_rows()[2], slice(0, 60)), select(few_rows()[2], slice(60, None))
    model, _, _ = narrowed(learned_by_heart, held_out=chosen_by)
    gained_nats = evaluate(learned_by_heart, others).negative_elbo_nats - evaluate(model, others).negative_elbo_nats
    assert gained_nats > 0.5


def test_the_same_seed_gives_the_same_encoder(learned_by_heart: VariationalAutoencoder) -> None:
    first, again = (narrowed(learned_by_heart, num_steps=ROUND_STEPS)[0] for _ in range(2))
    assert_same_weights(first.state_dict(), again.state_dict())
    other = narrowed(learned_by_heart, num_steps=ROUND_STEPS, seed=1)[0]
    assert not torch.equal(other.encoder.head.linear.weight, first.encoder.head.linear.weight)


@pytest.mark.parametrize("rate", [10.0, math.inf], ids=["too high", "not finite"])
def test_weights_that_held_out_rows_do_not_like_are_not_kept(
    learned_by_heart: VariationalAutoencoder, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(amortization, "LEARNING_RATE", rate)
    model, _, events = narrowed(learned_by_heart)
    assert model is learned_by_heart
    assert not events


def test_a_model_is_left_alone_where_there_is_no_gap_no_time_hardly_a_step_or_no_elbo(
    learned_by_heart: VariationalAutoencoder,
) -> None:
    for choices in (
        {"held_out": few_rows()[1]},
        {"deadline_s": time.monotonic() - 1.0},
        {"num_steps": ROUND_STEPS // 2 - 1},
        {"objective": "iwae"},
    ):
        model, _, events = narrowed(learned_by_heart, **choices)
        assert model is learned_by_heart, choices
        assert not events


def test_rounds_end_with_the_time(learned_by_heart: VariationalAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(amortization.time, "monotonic", lambda: next(clock))
    model, _, events = narrowed(learned_by_heart, deadline_s=ROUND_STEPS + 10.0, num_steps=10_000)
    assert events, "what the first round brought is kept"
    assert model is not learned_by_heart
    assert next(clock) <= ROUND_STEPS + 15


def test_steps_are_taken_on_the_device_that_is_named(
    learned_by_heart: VariationalAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor left on the processor would be an error: the device "meta" stands in for a GPU."""
    monkeypatch.setattr(amortization, "ROUND_STEPS", 2)
    reader = MemoryReader(few_rows()[1], batch_size=BATCH_SIZE, seed=0)
    rounds = amortization._rounds(
        learned_by_heart, reader, 1, first_step=0, seed=0, deadline_s=math.inf, device=torch.device("meta")
    )
    assert next(rounds).device.type == "meta"
    assert learned_by_heart.device.type == "cpu"


def test_drawn_rows_of_every_role_are_rows(mixed_table: pa.Table) -> None:
    schema, rows = encoded(mixed_table)
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture())
    batch = {name: torch.from_numpy(np.array(array[:40])) for name, array in rows.items()}
    mixed = amortization._half_drawn(model, batch, torch.Generator().manual_seed(0))
    assert {name: (values.dtype, values.shape) for name, values in mixed.items()} == {
        name: (values.dtype, values.shape) for name, values in batch.items()
    }
    for name, values in mixed.items():
        assert torch.equal(values[:20].nan_to_num(-1.0), batch[name][20:].nan_to_num(-1.0)), name
    assert math.isfinite(evaluate(model, {name: values.numpy() for name, values in mixed.items()}).negative_elbo_nats)


@pytest.mark.parametrize(
    ("settings", "choices", "may"),
    [
        ({}, {}, True),
        ({"objective": "iwae"}, {}, False),
        ({"beta": 2.0}, {}, False),
        ({"contaminated": True}, {}, False),
        ({}, {"kind": "autoencoder", "prior": "realnvp"}, False),
        ({}, {"denoising": True}, True),
    ],
    ids=str,
)
def test_only_an_encoder_that_learned_from_the_elbo_learns_on(
    settings: dict[str, Any], choices: dict[str, Any], may: bool
) -> None:
    assert may_learn_on(TrainSettings(**settings), architecture(**choices)) is may


@pytest.mark.parametrize("denoising", [False, True])
def test_a_run_says_it_and_its_checkpoint_has_it(tmp_path: Path, denoising: bool) -> None:
    data = write_parquet(tmp_path / "factors.parquet", factor_table(100))
    settings = quick_settings(data, max_steps=500, learning_rate=3e-3)
    model = dataclasses.replace(settings.model, latent_size=LATENT_SIZE, width=64, depth=2, denoising=denoising)
    result = train(dataclasses.replace(settings, model=model), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    messages = [line["message"] for line in lines if line.get("event") == "amortization"]
    assert len(messages) == 1
    assert "the encoder alone learned on" in messages[0]
    best = min(line["validation_nats"] for line in lines if "validation_nats" in line)
    assert result.negative_elbo_nats < best - 1.0
