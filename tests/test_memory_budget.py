"""The memory budget: what it decides, and that a streamed run is a run like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import list_array, people_table, quick_settings, write_parquet
from streams import (
    unit_rows,
)

from parvae_pipeline.decode import UnitRows, row_bytes
from parvae_pipeline.memory_reader import MemoryReader
from parvae_pipeline.progress import Report
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.stream_reader import StreamReader
from parvae_pipeline.train import Plan, train
from parvae_pipeline.training_data import default_memory_budget_mb, open_data

# The budget


def data_of(rows: UnitRows, memory_budget_mb: float) -> Any:
    return open_data(
        rows.units, rows.schema, rows.split, batch_size=4, seed=0, memory_budget_mb=memory_budget_mb, num_first_rows=25
    )


def test_the_budget_decides_and_changes_no_row(tmp_path: Path) -> None:
    rows = unit_rows([write_parquet(tmp_path / "a.parquet", people_table(200), row_group_size=30)])
    size_mb = int((~rows.split.held_out()).sum()) * row_bytes(rows.schema) / 2**20
    memory, streamed = data_of(rows, size_mb), data_of(rows, 0.99 * size_mb)
    assert (memory.is_streamed, streamed.is_streamed) == (False, True)
    assert isinstance(memory.reader, MemoryReader)
    assert isinstance(streamed.reader, StreamReader)
    for name in memory.held_out:
        np.testing.assert_array_equal(memory.held_out[name], streamed.held_out[name])
        np.testing.assert_array_equal(memory.first_rows[name], streamed.first_rows[name])
        assert len(memory.first_rows[name]) == 25


def test_the_default_budget_is_a_part_of_the_memory_of_this_machine() -> None:
    assert 256 <= default_memory_budget_mb() <= max(256, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 22)


MEASURE = """
import itertools, re, sys
from builders import quick_settings
from parvae.files import find_files
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.training_data import open_data
from parvae_pipeline.units import plan_units

units = plan_units(find_files(sys.argv[1:]))
schema = infer_schema(scan(units), overrides={}, label=None)
split = Split.of(units.total_rows, share=0.1, max_rows=1000, seed=0)
data = open_data(units, schema, split, batch_size=128, seed=0, memory_budget_mb=24, num_first_rows=1000)
assert data.is_streamed
for _ in itertools.islice(data.reader.batches(0), 2 * data.reader.steps_per_epoch):
    pass
# Not getrusage's peak, which begins at what the process that started this one held.
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    # 32 MB of rows in a file: a little more than the budget of 24 MB, so that one file is streamed as ten are.
    table = pa.table({"v": list_array(np.random.default_rng(0).normal(size=(32_768, 256)).astype(np.float32))})
    first = write_parquet(tmp_path / "0.parquet", table, row_group_size=4096)
    paths = [first]
    for number in range(1, 10):
        (tmp_path / f"{number}.parquet").hardlink_to(first)
        paths.append(str(tmp_path / f"{number}.parquet"))
    peaks = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    for given_paths in (paths[:1], paths):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *given_paths], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.15 * peaks[0], peaks


# Whole runs

TINY_MB = 0.002


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parquet(tmp_path_factory.mktemp("people") / "a.parquet", people_table(240), row_group_size=31)


def last_weights_of(folder: Path) -> dict[str, Any]:
    state = RunFolder(folder).load_state()
    assert state is not None
    return {**state["model"], **{f"averaged.{name}": value for name, value in state["averaged"].items()}}


def test_a_streamed_run_that_is_stopped_ends_as_one_that_is_not(people: str, tmp_path: Path) -> None:
    run = quick_settings(
        people, data={"memory_budget_mb": TINY_MB}, max_steps=60, batch_size=20, checkpoint_every_s=0.0
    )
    plans: list[Plan] = []
    train(run, tmp_path / "whole", announce=plans.append)

    def stop(report: Report) -> None:
        if report.progress.step >= 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "stopped", report=stop)
    train(run, tmp_path / "stopped", announce=plans.append)
    assert [plan.is_streamed for plan in plans] == [True, True]
    steps_per_epoch = plans[1].num_training_rows // 20
    assert plans[1].resumed_at_step % steps_per_epoch, "the run was stopped between epochs and proves nothing"
    found, expected = last_weights_of(tmp_path / "stopped"), last_weights_of(tmp_path / "whole")
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_resumed_run_keeps_the_budget_of_the_machine_where_it_began(
    people: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = quick_settings(people, max_steps=40, checkpoint_every_s=0.0)
    plans: list[Plan] = []
    monkeypatch.setattr("parvae_pipeline.train.default_memory_budget_mb", lambda: TINY_MB)
    train(run, tmp_path / "run", announce=plans.append)
    monkeypatch.setattr("parvae_pipeline.train.default_memory_budget_mb", lambda: 1000.0)
    train(run, tmp_path / "run", announce=plans.append)
    assert [plan.is_streamed for plan in plans] == [True, True]


def test_a_streamed_run_learns_as_one_in_memory_does(people: str, tmp_path: Path) -> None:
    results = [
        train(quick_settings(people, data={"memory_budget_mb": budget_mb}, max_steps=150), tmp_path / str(budget_mb))
        for budget_mb in (TINY_MB, 100.0)
    ]
    assert results[0].num_training_rows == results[1].num_training_rows
    assert results[0].negative_elbo_nats == pytest.approx(results[1].negative_elbo_nats, abs=1.0)
