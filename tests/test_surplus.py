"""Latent dimensions that say nothing of a row: found, dropped from exported codes, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import architecture, encoded, people_table

import parvae
from parvae_export.export import export
from parvae_pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from parvae_pipeline.config import RunSettings
from parvae_pipeline.evaluate import evaluate, posteriors
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import encode
from parvae_pipeline.surplus import without_surplus
from parvae_pipeline.train import train

LATENT_SIZE = 5
IDLE = (1, 4)


def model_with_idle_dimensions(**choices: object) -> tuple[VariationalAutoencoder, dict[str, np.ndarray]]:
    """A model in two of whose dimensions every row has nearly the same posterior."""
    schema, rows = encoded(people_table(400))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(latent_size=LATENT_SIZE, **choices))
    with torch.no_grad():
        model.encoder.head.linear.weight[[*IDLE, *(LATENT_SIZE + d for d in IDLE)]] *= 1e-3
        model.encoder.head.linear.bias[list(IDLE)] = torch.tensor([0.1, -0.2])
        model.encoder.head.linear.bias[LATENT_SIZE:] = torch.tensor([-4.0, 0.0, -4.0, -4.0, 0.0])
        for layer in model.decoder.code_layers:
            layer.weight[:, list(IDLE)] *= 0.01
    return model.eval(), {name: np.array(array) for name, array in rows.items()}


@pytest.mark.parametrize("choices", [{}, {"depth": 0}, {"prior": "realnvp"}], ids=str)
def test_idle_dimensions_are_dropped_and_a_row_costs_what_it_did(choices: dict[str, object]) -> None:
    model, rows = model_with_idle_dimensions(**choices)
    before = evaluate(model, rows)
    found, evaluation, events = without_surplus(model, rows, rows, before)
    assert found.architecture.surplus == IDLE
    assert found.code_dimensions == [0, 2, 3]
    assert evaluation == evaluate(found, rows)
    assert evaluation.negative_elbo_nats == pytest.approx(before.negative_elbo_nats, abs=0.02)
    assert [event["message"] for event in events] == [
        "code: 3 of 5 dimensions are active; the others are left out of exported codes"
    ]


def test_a_dropped_dimension_is_the_same_for_every_row_and_the_decoder_does_not_look_at_it() -> None:
    model, rows = model_with_idle_dimensions()
    old_mean, old_log_variance = posteriors(model, rows)
    found, _, _ = without_surplus(model, rows, rows, evaluate(model, rows))
    mean, log_variance = posteriors(found, rows)
    assert bool((mean[:, IDLE] == mean[:1, IDLE]).all())
    assert bool((log_variance[:, IDLE] == log_variance[:1, IDLE]).all())
    torch.testing.assert_close(mean[0, list(IDLE)], old_mean.mean(dim=0)[list(IDLE)])
    torch.testing.assert_close(log_variance[0, list(IDLE)], old_log_variance.mean(dim=0)[list(IDLE)], atol=1e-3, rtol=0)
    z, other = mean.clone(), mean.clone()
    other[:, IDLE] = 7.0
    raw = {name: torch.from_numpy(array) for name, array in rows.items()}
    torch.testing.assert_close(found.column_nats(raw, z), found.column_nats(raw, other), rtol=0, atol=0)
    torch.testing.assert_close(found.column_nats(raw, z), model.column_nats(raw, z))


def test_a_code_of_which_nothing_would_be_left_stays() -> None:
    model, rows = model_with_idle_dimensions()
    copies = {name: np.repeat(array[:1], 50, axis=0) for name, array in rows.items()}
    found, _, events = without_surplus(model, copies, rows, evaluate(model, rows))
    assert (found, events) == (model, [])


def test_dimensions_whose_loss_costs_nats_stay_and_the_run_says_so() -> None:
    model, rows = model_with_idle_dimensions()
    held_out = evaluate(model, rows)
    cheaper = held_out.__class__(**{**vars(held_out), "negative_elbo_nats": held_out.negative_elbo_nats - 0.5})
    found, evaluation, events = without_surplus(model, rows, rows, cheaper)
    assert (found, evaluation) == (model, cheaper)
    assert events[0]["message"].startswith("code: all 5 dimensions stay; 3 would cost 0.5")


def test_an_autoencoder_keeps_its_codes_whole() -> None:
    model, rows = model_with_idle_dimensions(kind="autoencoder")
    assert without_surplus(model, rows, rows, evaluate(model, rows))[0] is model


def test_the_choice_survives_the_checkpoint_and_gives_short_codes(tmp_path: Path) -> None:
    model, rows = model_with_idle_dimensions(prior="realnvp")
    found, _, _ = without_surplus(model, rows, rows, evaluate(model, rows))
    metrics = {"negative_elbo_nats": 0.0, "distortion_nats": 0.0, "rate_nats": 0.0, "num_steps": 1, "column_nats": {}}
    settings = RunSettings.from_mapping({"data": {"paths": ["unused.parquet"]}})
    checkpoint = Checkpoint(model=found, settings=settings, reservoir=rows, metrics=metrics)
    write_checkpoint(parvae.storage.place_of(tmp_path / "ckpt.pt"), checkpoint)
    assert read_checkpoint(tmp_path / "ckpt.pt").model.architecture == found.architecture
    vae = parvae.load(export(tmp_path / "ckpt.pt").path)
    table = people_table(30, seed=1)
    codes = vae.encode(table)
    assert codes.shape == (30, vae.latent_size) == (30, 3)
    raw = encode(found.schema, table)
    mean, _ = posteriors(found, {name: np.array(array) for name, array in raw.items()})
    np.testing.assert_allclose(codes, mean[:, [0, 2, 3]].numpy(), atol=1e-4)
    decoded = vae.decode(codes)
    np.testing.assert_allclose(decoded["height"], vae.reconstruct(table)["height"].to_numpy(), rtol=1e-4)
    assert len(vae.sample(7, seed=0)["height"]) == 7


def test_training_with_more_dimensions_than_the_data_has_gives_short_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=3_000)
    columns = {f"n{index}": (index + 1.0) * one + 0.1 * rng.normal(size=3_000) for index in range(4)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    document = {
        "data": {"paths": [str(tmp_path / "rows.parquet")]},
        "model": {"latent_size": 4, "width": 16},
        "train": {"max_steps": 600, "threads": 1},
    }
    train(RunSettings.from_mapping(document), tmp_path / "run")
    vae = parvae.load(export(tmp_path / "run" / "ckpt.pt").path)
    assert 1 <= vae.latent_size < 4
    assert vae.manifest["metrics"]["diagnosis"]["latent_size"] == 4
    again = vae.reconstruct(pa.table(columns))
    assert float(np.std(again["n3"].to_numpy() - columns["n3"])) < 0.3
