"""Training on rows that hold anomalies: what is left out, and that it pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from builders import architecture, numeric, schema_of
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from parvae.cli import vae as cli
from parvae_pipeline.choices import CONTAMINATED_STEPS, choose_schedule
from parvae_pipeline.config import TrainSettings
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.objectives import trimmed_mean
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.sklearn import VAEDetector
from parvae_pipeline.strangeness import Strangeness
from parvae_pipeline.world import ALONE


def test_the_hardest_fifth_of_a_batch_teaches_nothing() -> None:
    losses = torch.tensor([3.0, 900.0, 1.0, 2.0, 4.0, 800.0, 5.0, 6.0, 7.0, 8.0], requires_grad=True)
    loss = trimmed_mean(losses)
    assert float(loss.detach()) == 4.5
    loss.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.125, 0.0, *[0.125] * 3, 0.0, *[0.125] * 4]
    assert float(trimmed_mean(torch.tensor([2.0]))) == 2.0


def test_the_strangest_typical_rows_are_left_out_of_the_coreset() -> None:
    schema = schema_of(numeric("a"), numeric("b"))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(denoising=True)).eval()
    rows = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[::10] += 12.0
    strangeness = Strangeness(model, {"numeric": rows}, keep_rows=True, contaminated=True)
    assert strangeness.part_names == ("nats", "residual", "hidden", "distance")
    assert strangeness({"numeric": rows[:5]})[1].shape == (5, 4)
    kept = strangeness.coreset
    assert len(kept) == 400
    assert float(kept.abs().max()) < 6.0
    assert len(Strangeness(model, {"numeric": rows}, keep_rows=True).coreset) == 500


def test_a_crowd_of_anomalies_is_far_from_a_fifth_of_contaminated_rows() -> None:
    schema = schema_of(numeric("a"), numeric("b"))
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture(denoising=True)).eval()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    rows[:50] = 0.01 * rows[:50] + torch.tensor([3.0, 3.0])
    distance = {}
    for contaminated in (True, False):
        strangeness = Strangeness(model, {"numeric": rows}, keep_rows=True, contaminated=contaminated)
        # The crowd is in it, whatever was left out.
        strangeness.coreset = model.features({"numeric": rows}) - strangeness.origin
        with torch.no_grad():
            distance[contaminated] = strangeness._to_coreset(strangeness.distances({"numeric": rows}))[0]
    assert distance[True][:50].min() > distance[True][50:].median()
    assert distance[False][:50].max() < distance[False][50:].median()


def test_the_run_is_short_unless_its_length_is_named() -> None:
    reader = MemoryReader({"numeric": np.zeros((50_000, 1))}, batch_size=128, seed=0)
    for settings, steps in (
        (TrainSettings(contaminated=True), CONTAMINATED_STEPS),
        (TrainSettings(contaminated=True, max_steps=7), 7),
    ):
        assert choose_schedule(settings, reader, 100, ALONE).total_steps == steps
    assert choose_schedule(TrainSettings(), reader, 100, ALONE).total_steps > CONTAMINATED_STEPS


def test_the_option_is_a_setting_of_the_run(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=60)}), tmp_path / "rows.parquet")
    small = ["--set", "model.width=8", "--set", "train.max_steps=3", "--set", "train.threads=1"]
    done = CliRunner().invoke(
        cli, ["train", str(tmp_path / "rows.parquet"), "-o", str(tmp_path / "run"), "--contaminated", *small]
    )
    assert done.exit_code == 0, done.output
    assert RunFolder(tmp_path / "run").settings().train.contaminated


def test_anomalies_among_the_training_rows_stay_anomalies() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(900, 2)) @ [[1.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, -1.0]] + 0.1 * rng.normal(size=(900, 4))
    crowd = np.array([4.0, -4.0, 4.0, 4.0]) + 0.1 * rng.normal(size=(100, 4))  # a tenth of the rows, close together
    rows, labels = np.concatenate([normal, crowd]), np.repeat([0, 1], [900, 100])
    small = {"model.width": 32, "train.max_steps": 300, "train.threads": 1}
    areas = [
        roc_auc_score(labels, VAEDetector(settings={**small, "train.contaminated": value}).fit(rows).decision_scores_)
        for value in (True, False)
    ]
    assert areas[0] > 0.97
    assert areas[0] > areas[1]
