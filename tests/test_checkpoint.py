"""Checkpoints and run files: read without running code, and damage is named."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import people_table, quick_settings, write_parquet

from parvae.errors import BundleError
from parvae.files import find_files
from parvae_pipeline.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from parvae_pipeline.config import RunSettings
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.run_folder import torch_bytes
from parvae_pipeline.scan import scan
from parvae_pipeline.train import Result, train
from parvae_pipeline.units import plan_units

NUM_STEPS = 80


def test_the_checkpoint_loads_without_running_code(finished: tuple[Path, Result]) -> None:
    document = torch.load(finished[0] / "ckpt.pt", weights_only=True)
    assert sorted(document) == ["coreset", "facts", "parvae_checkpoint", "reservoir", "weights"]
    assert set(json.loads(document["facts"])) == {"schema", "architecture", "settings", "metrics", "versions"}


def test_a_private_run_keeps_every_row_out_of_the_checkpoint(data: str, tmp_path: Path) -> None:
    settings = quick_settings(data, data={"reservoir_rows": 0}, max_steps=25)
    train(settings, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt").reservoir == {}
    document = torch.load(tmp_path / "run" / "ckpt.pt", weights_only=True)
    assert document["reservoir"] == document["coreset"] == {}


def test_the_reservoir_is_bounded(data: str, tmp_path: Path) -> None:
    train(quick_settings(data, data={"reservoir_rows": 5}, max_steps=25), tmp_path / "run")
    assert {len(rows) for rows in read_checkpoint(tmp_path / "run" / "ckpt.pt").reservoir.values()} == {5}


def test_keys_labels_and_ignored_columns_never_reach_the_checkpoint(tmp_path: Path) -> None:
    table = people_table(100)
    table = table.append_column("name", pa.array([f"secret {number}" for number in range(100)]))
    table = table.append_column("diagnosis", pa.array([f"illness {number % 3}" for number in range(100)]))
    path = write_parquet(tmp_path / "people.parquet", table)
    train(quick_settings(path, data={"label": "diagnosis"}, max_steps=25), tmp_path / "run")
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"secret " not in content, file
            assert b"illness " not in content, file


def test_a_checkpoint_survives_a_round_trip(finished: tuple[Path, Result], tmp_path: Path) -> None:
    first = read_checkpoint(finished[0] / "ckpt.pt")
    write_checkpoint(tmp_path / "ckpt.pt", first)
    second = read_checkpoint(tmp_path / "ckpt.pt")
    assert second.schema == first.schema
    assert second.settings == first.settings
    assert second.metrics == first.metrics
    assert second.model.architecture == first.model.architecture
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    for name, rows in first.reservoir.items():
        np.testing.assert_array_equal(second.reservoir[name], rows)


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def damaged_files(path: Path, good: bytes) -> dict[str, bytes]:
    torch.save({"weights": torch.zeros(3)}, path)
    another = path.read_bytes()
    torch.save(torch.zeros(3), path)
    tensor = path.read_bytes()
    torch.save({"parvae_checkpoint": FORMAT, "facts": Payload()}, path)
    code = path.read_bytes()
    return {
        "text": b"step,loss\n1,2\n",
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "another torch file": another,
        "a bare tensor": tensor,
        "code": code,
        "parquet": b"PAR1" + b"\x00" * 100 + b"PAR1",
        "no facts": torch_bytes({"parvae_checkpoint": FORMAT}),
    }


@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "another torch file", "a bare tensor", "code", "parquet", "no facts"]
)
def test_what_is_no_checkpoint_is_refused_by_name(finished: tuple[Path, Result], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.pt"
    content = damaged_files(tmp_path / "scratch.pt", (finished[0] / "ckpt.pt").read_bytes())[kind]
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"other\.pt"):
        read_checkpoint(path)


def test_a_flipped_byte_in_the_weights_is_noticed(finished: tuple[Path, Result], tmp_path: Path) -> None:
    good = (finished[0] / "ckpt.pt").read_bytes()
    weight = next(iter(read_checkpoint(finished[0] / "ckpt.pt").model.state_dict().values()))
    start = good.index(weight.numpy().tobytes())
    path = tmp_path / "flipped.pt"
    path.write_bytes(good[:start] + bytes([good[start] ^ 0xFF]) + good[start + 1 :])
    with pytest.raises(BundleError, match=r"flipped\.pt"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.pt cannot be opened: No such file"):
        read_checkpoint(tmp_path / "none.pt")


def test_a_newer_format_asks_for_an_upgrade(finished: tuple[Path, Result], tmp_path: Path) -> None:
    document = torch.load(finished[0] / "ckpt.pt", weights_only=True)
    (tmp_path / "new.pt").write_bytes(torch_bytes({**document, "parvae_checkpoint": FORMAT + 1}))
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}; this parvae reads {FORMAT}: upgrade it"):
        read_checkpoint(tmp_path / "new.pt")


# The run file


def test_run_toml_is_plain_toml_that_starts_the_same_run(finished: tuple[Path, Result], data: str) -> None:
    document = tomllib.loads((finished[0] / "run.toml").read_text())
    assert document["train"]["max_steps"] == NUM_STEPS
    assert document["data"]["paths"] == [data]
    assert RunSettings.from_mapping(document) == quick_settings(data)


def test_every_role_trains_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    table = people_table(80).append_column(
        "pixels",
        pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, 80 * 64, dtype=np.uint8)), 64),
    )
    path = write_parquet(tmp_path / "all.parquet", table)
    schema = infer_schema(scan(plan_units(find_files([path]))), overrides={}, label=None)
    result = train(quick_settings(path, max_steps=30), tmp_path / "run")
    assert read_checkpoint(result.checkpoint_path).schema == schema
    assert np.isfinite(result.negative_elbo_nats)
