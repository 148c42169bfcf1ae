"""Textbook losses and the deterministic autoencoder, by name: they train, export, and refuse what they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import architecture, image, list_array, numeric, random_raw, schema_of, vector
from conftest import export_bundle, train_small

import parvae
from parvae.errors import SettingError
from parvae.schema import Column
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.model import VariationalAutoencoder


def test_mse_is_half_the_squared_error_of_numbers_and_vectors() -> None:
    schema = schema_of(numeric(stddev=2.0), vector(size=3), image(height=4, width=4))
    model = VariationalAutoencoder(schema, architecture(likelihood="mse"))
    raw = random_raw(schema, 5)
    nats = model.column_nats(raw, torch.zeros(5, 3)).double()
    expected = model.decode(torch.zeros(5, 3))
    present = np.log1p(-1.0 / 102.0)
    number = 0.5 * ((raw["numeric"] - expected["numeric"]) / 2.0).square().sum(dim=1)
    elements = 0.5 * (raw["vector.v"] - expected["vector.v"]).double().square().sum(dim=1)
    constant = 0.5 * np.log(2.0 * np.pi)
    torch.testing.assert_close(nats[:, 0], number + constant - present, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nats[:, 1], elements + 3 * constant, rtol=1e-4, atol=1e-4)
    assert expected["image.pixels"].dtype == torch.uint8


@pytest.mark.parametrize("column", [numeric("price"), vector("price")])
def test_bce_refuses_values_that_are_no_shares_and_names_the_column(column: Column) -> None:
    with pytest.raises(SettingError, match=r"'bce'.*price.*'mse'"):
        VariationalAutoencoder(schema_of(column), architecture(likelihood="bce"))


@pytest.mark.parametrize(("likelihood", "kind"), [("mse", "vae"), ("bce", "vae"), ("auto", "autoencoder")])
def test_each_trains_exports_and_samples(tmp_path: Path, likelihood: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    shade = rng.integers(0, 200, (300, 1))
    pixels = (shade + rng.integers(0, 50, (300, 20))).astype("u1")
    columns = {"pixels": list_array(pixels)}
    if likelihood != "bce":
        columns["weight"] = pa.array(shade[:, 0] + rng.normal(size=300))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    run = train_small(
        tmp_path / "a.parquet", tmp_path / "run", label=None, max_steps=150, likelihood=likelihood, kind=kind
    )
    vae = parvae.load(export_bundle(run))
    again = vae.reconstruct({name: np.array(values.to_pylist()) for name, values in columns.items()})
    error = np.abs(again["pixels"].astype(float) - pixels).mean()
    assert error < 0.7 * np.abs(pixels - pixels.mean()).mean()
    assert vae.sample(4)["pixels"].shape == (4, 20)


def test_an_autoencoder_has_one_code_a_row_and_its_prior_does_not_move_it() -> None:
    schema = schema_of(numeric(), vector(size=3))
    model = VariationalAutoencoder(schema, architecture(kind="autoencoder", prior="realnvp"))
    raw = random_raw(schema, 6)
    first, second = (model.elbo_terms(raw, torch.randn(6, 3)) for _ in range(2))
    torch.testing.assert_close(first.negative_elbo_nats, second.negative_elbo_nats)
    torch.testing.assert_close(model.score_terms(raw).negative_elbo_nats, first.negative_elbo_nats)
    torch.autograd.backward(first.kl_nats.sum())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert any(parameter.grad is not None for parameter in model.prior.parameters())


def test_a_run_is_a_vae_with_densities_unless_it_says_otherwise(mixed_run: Path) -> None:
    found = read_checkpoint(mixed_run / "ckpt.pt").model.architecture
    assert (found.likelihood, found.kind) == ("auto", "vae")
