"""The size of a network follows the time: what is measured, what is chosen, and that a resumed run keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import architecture, encoded, people_table, write_parquet

from parvae_pipeline import choices
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


def table_settings(**document: dict[str, float]) -> RunSettings:
    return RunSettings.from_mapping({"data": {"paths": ["a.parquet"]}, "train": {"budget_s": 3600.0}, **document})


def test_a_table_network_is_wide_and_has_dropout_where_there_is_time_for_it() -> None:
    settings, default = table_settings(), architecture(width=300)
    assert choices.has_open_size(settings, default, 50_000)
    brief, long = (choices.sized_for(default, epochs) for epochs in (299.0, 300.0))
    assert (brief.width, choices.choose_dropout(settings, brief)) == (300, None)
    assert (long.width, choices.choose_dropout(settings, long)) == (512, 0.1)


@pytest.mark.parametrize(
    ("document", "num_rows"),
    [
        ({"model": {"width": 512}}, 50_000),
        ({"train": {"budget_s": 3600.0, "max_steps": 5000}}, 50_000),
        ({"train": {"max_steps": 5000}}, 50_000),
        ({}, 5_000),
    ],
)
def test_the_size_of_a_table_network_is_fixed_by_its_name_by_steps_or_by_few_rows(
    document: dict[str, dict[str, float]], num_rows: int
) -> None:
    assert not choices.has_open_size(table_settings(**document), architecture(), num_rows)


def test_dropout_that_is_named_is_taken() -> None:
    assert choices.choose_dropout(table_settings(train={"dropout": 0.3}), architecture(width=8)) == 0.3
    assert choices.choose_dropout(table_settings(train={"dropout": 0.0}), architecture(width=512)) == 0.0
    assert choices.choose_dropout(table_settings(model={"width": 512}), architecture(width=512)) is None
