"""How strange a row is: parts that say what they should, in torch and in the exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import architecture, random_raw, schema_of
from builders import numeric as numeric_column

import parvae
from parvae.bundle import read_bundle
from parvae.model import VAE
from parvae.selftest import replay
from parvae_export.export import export
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.config import RunSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.strangeness import SMALLEST_DISTANCE, Strangeness, choose_coreset
from parvae_pipeline.train import train

NUM_ROWS = 1_200


def measurements(num_rows: int = NUM_ROWS, *, seed: int = 0) -> pa.Table:
    """Five numbers on a curve with two degrees of freedom, a category that follows from them, and a boolean."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, num_rows))
    noise = rng.normal(size=(5, num_rows)) * 0.1
    return pa.table(
        {
            "n0": a + noise[0],
            "n1": b + noise[1],
            "n2": a - b + noise[2],
            "n3": a * b + noise[3],
            "n4": 0.5 * a + np.sin(b) + noise[4],
            "side": pa.array(np.where(a + b > 0, "left", "right").tolist()),
            "up": pa.array((a > 0).tolist()),
        }
    )


def trained(folder: Path, *, max_steps: int = 700, **data: object) -> Path:
    pq.write_table(measurements(), folder / "rows.parquet")
    document = {
        "data": {"paths": [str(folder / "rows.parquet")], **data},
        "model": {"denoising": True, "width": 48, "latent_size": 4},
        "train": {"max_steps": max_steps, "threads": 1},
    }
    train(RunSettings.from_mapping(document), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("strangeness"))


@pytest.fixture(scope="module")
def vae(run: Path) -> VAE:
    return parvae.load(export(run / "ckpt.pt").path)


@pytest.fixture(scope="module")
def fresh() -> pa.Table:
    return measurements(400, seed=1)


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_the_bundle_replays_what_it_says(run: Path, vae: VAE) -> None:
    checks = replay(read_bundle(run / "model.vae"))
    assert all(check.passed for check in checks)
    assert {check.output for check in checks if check.graph == "score"} == {
        "score",
        "contributions",
        "strangeness",
        "parts",
        "conditional",
        "hidden_codes",
    }


def test_numbers_are_judged_in_standard_deviations(run: Path) -> None:
    plain = infer_schema(statistics_of(measurements()), overrides={}, label=None, with_shapes=False)
    assert read_checkpoint(run / "ckpt.pt").schema == plain


def test_the_model_has_one_vote_beside_two_of_known_rows_and_their_mean_ranks_the_rows(
    vae: VAE, fresh: pa.Table
) -> None:
    scores = vae.score(fresh)
    assert list(scores.strangeness_parts) == ["nats", "residual", "hidden", "distance", "isolation"]
    assert scores.strangeness is not None
    parts = list(scores.strangeness_parts.values())
    wanted = np.mean([np.mean(parts[:3], axis=0), *parts[3:]], axis=0)
    np.testing.assert_allclose(scores.strangeness, wanted, atol=1e-5)
    np.testing.assert_array_equal(scores.score, scores.strangeness)
    table = np.array(vae.manifest["calibration"]["scores"], np.float32)
    wanted = [(1 + int((table >= score).sum())) / (1 + len(table)) for score in scores.strangeness]
    np.testing.assert_allclose(scores.p_value, wanted)


def test_nats_and_their_contributions_stay_what_they_are_without_strangeness(vae: VAE, fresh: pa.Table) -> None:
    scores = vae.score(fresh)
    np.testing.assert_allclose(scores.contributions.sum(axis=1), scores.nats, rtol=1e-4, atol=1e-3)


def test_rows_that_break_a_relation_are_strange_in_every_part(vae: VAE, fresh: pa.Table) -> None:
    broken = with_column(fresh, "n2", fresh["n2"].to_numpy() + 3.0)
    before, after = vae.score(fresh), vae.score(broken)
    for name in before.strangeness_parts:
        assert np.mean(after.strangeness_parts[name] > before.strangeness_parts[name]) > 0.95, name
    assert np.mean(after.p_value <= 0.05) > 0.9
    assert np.mean(before.p_value <= 0.05) < 0.12


def test_a_copy_of_a_training_row_is_close(vae: VAE) -> None:
    near = vae.score(measurements())
    far = vae.score(measurements(seed=2))
    assert np.median(near.strangeness_parts["distance"]) < np.median(far.strangeness_parts["distance"])


@pytest.mark.parametrize("name", ["n0", "n1", "n2", "n3", "n4"])
def test_conditional_nats_name_the_column_at_fault(vae: VAE, fresh: pa.Table, name: str) -> None:
    values = fresh[name].to_numpy()
    order = np.argsort(values)
    far = np.empty_like(values)
    far[order] = np.where(values[order] > np.median(values), values[order[0]], values[order[-1]])
    blamed = vae.score(with_column(fresh, name, far)).blame()
    names = [column.name for column in vae.schema.modelled]
    assert np.mean(blamed.argmax(axis=1) == names.index(name)) >= 0.9


def test_nothing_of_the_rows_is_kept_where_none_may_leave(tmp_path: Path, fresh: pa.Table) -> None:
    run = trained(tmp_path, max_steps=20, reservoir_rows=0)
    checkpoint = read_checkpoint(run / "ckpt.pt")
    assert not checkpoint.coreset
    assert not checkpoint.reservoir
    scores = parvae.load(export(run / "ckpt.pt").path).score(fresh)
    assert list(scores.strangeness_parts) == ["nats", "residual", "hidden"]
    np.testing.assert_allclose(scores.strangeness, np.mean(list(scores.strangeness_parts.values()), axis=0), atol=1e-5)


def test_the_coreset_holds_distinct_training_rows() -> None:
    rows = {"numeric": np.repeat(np.arange(60.0), 5).reshape(-1, 1)}
    reader = MemoryReader(rows, batch_size=128, seed=0)
    coreset = choose_coreset(reader, max_rows=1_000)["numeric"][:, 0]
    assert len(coreset) == len(set(coreset.tolist())) == 60
    few = choose_coreset(reader, max_rows=7)["numeric"]
    assert few.shape == (7, 1)
    assert set(few[:, 0]) <= set(range(60))
    with_copies = choose_coreset(reader, max_rows=1_000, contaminated=True)["numeric"][:, 0]
    assert len(with_copies) == 256  # the two batches of an epoch
    assert np.unique(with_copies, return_counts=True)[1].max() > 3


def test_a_row_is_no_neighbour_of_its_own_while_the_scales_are_set() -> None:
    schema = schema_of(numeric_column("a"), numeric_column("b"))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(denoising=True)).eval()
    typical = random_raw(schema, 1_100)
    strangeness = Strangeness(model, typical, keep_rows=True)
    with torch.no_grad():
        distances = strangeness.distances({"numeric": typical["numeric"][700:710]})
        usual = distances.scatter(1, torch.arange(700, 710).unsqueeze(1), torch.inf).topk(5, largest=False).values
    torch.testing.assert_close(strangeness.log_usual[700:710], usual.mean(dim=1).log())


@pytest.mark.parametrize("num_rows", [2, 3, 7])
def test_few_typical_rows_are_enough(num_rows: int) -> None:
    schema = schema_of(numeric_column("a"), numeric_column("b"))
    model = VariationalAutoencoder(schema, architecture(denoising=True)).eval()
    strangeness = Strangeness(model, random_raw(schema, num_rows), keep_rows=True)
    with torch.no_grad():
        found, parts, *_ = strangeness(random_raw(schema, 5, seed=1))
    assert torch.isfinite(found).all()
    assert parts.shape == (5, 5)


def test_the_residuals_of_typical_rows_are_whitened() -> None:
    schema = schema_of(numeric_column("a"), numeric_column("b"), numeric_column("c"))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(denoising=True)).eval()
    typical = random_raw(schema, 1_100)
    strangeness = Strangeness(model, typical, keep_rows=False)
    with torch.no_grad():
        residual, hidden = strangeness.told(typical)[1], strangeness.conditional(typical)[1]
    for values, whitening in ((residual, strangeness.whitening), (hidden, strangeness.hidden_whitening)):
        white = values @ whitening
        torch.testing.assert_close(white.T @ white / len(white), torch.eye(3), atol=0.05, rtol=0)
    assert not torch.allclose(strangeness.whitening, strangeness.hidden_whitening)


def test_short_distances_far_from_zero_are_exact() -> None:
    model = VariationalAutoencoder(
        schema_of(numeric_column("a"), numeric_column("b")), architecture(denoising=True)
    ).eval()
    rows = 9.0 + 0.01 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strangeness = Strangeness(model, {"numeric": rows}, keep_rows=True)
    with torch.no_grad():
        found = strangeness.distances({"numeric": rows}).double()
        features = model.features({"numeric": rows}).double()
    wanted = torch.sqrt((features.unsqueeze(1) - features).square().sum(dim=2) + SMALLEST_DISTANCE**2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.0)
