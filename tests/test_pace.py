"""The size of an image network follows the time: what is measured, what is chosen, and that a resumed run keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import architecture, encoded, people_table, write_parquet

from parvae_pipeline import train as training
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.config import RunSettings
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.pace import rows_per_second

NUM_IMAGES = 60


def run_settings(path: str, **model: int) -> RunSettings:
    document = {
        "data": {"paths": [path]},
        "model": {"width": 8, **model},
        "train": {"budget_s": 600.0, "max_steps": 2, "threads": 1, "batch_size": 16},
    }
    return RunSettings.from_mapping(document)


@pytest.fixture
def images(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, NUM_IMAGES * 256).astype(np.uint8)
    return write_parquet(
        tmp_path / "images.parquet", pa.table({"image": pa.FixedSizeListArray.from_arrays(pa.array(pixels), 256)})
    )


def channels_of(folder: Path) -> int:
    return read_checkpoint(folder / "ckpt.pt").model.architecture.channels


def test_measuring_leaves_the_model_as_it_was() -> None:
    schema, rows = encoded(people_table(40))
    model = VariationalAutoencoder(schema, architecture())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = {name: np.array(array) for name, array in rows.items()}
    assert rows_per_second(model, copied, layer_dtype=torch.bfloat16) > 0.0
    assert model.layer_dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("rows_per_s", "channels"), [(1.0, 16), (1e6, 32)])
def test_short_of_time_the_image_network_is_narrow_and_stays_so(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_s: float, channels: int
) -> None:
    monkeypatch.setattr(training, "rows_per_second", lambda model, rows, layer_dtype: rows_per_s)
    result = training.train(run_settings(images), tmp_path / "run")
    assert channels_of(tmp_path / "run") == channels
    monkeypatch.setattr(training, "rows_per_second", lambda model, rows, layer_dtype: 1e6 / rows_per_s)
    again = training.train(run_settings(images), tmp_path / "run")
    assert again.negative_elbo_nats == result.negative_elbo_nats
    assert channels_of(tmp_path / "run") == channels


def test_a_named_width_is_taken_whatever_the_time(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "rows_per_second", lambda model, rows, layer_dtype: 1.0)
    training.train(run_settings(images, channels=32), tmp_path / "run")
    assert channels_of(tmp_path / "run") == 32
