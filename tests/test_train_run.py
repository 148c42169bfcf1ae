"""A whole run from Parquet to a run folder: what it leaves, what it refuses, and that no stop costs anything."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from builders import people_table, quick_settings, read_rows, write_parquet

from parvae.errors import BundleError, DataError, SettingError
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.evaluate import evaluate
from parvae_pipeline.progress import Report
from parvae_pipeline.reader import select
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.split import Split
from parvae_pipeline.train import Plan, Result, train
from parvae_pipeline.trainer import FIRST_TIMING_STEP

NUM_STEPS = 80


def weights_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_checkpoint(folder / "ckpt.pt").model.state_dict()
    return found


def last_weights_of(folder: Path) -> dict[str, Any]:
    """The weights after the last step, averaged or not the best."""
    state = RunFolder(folder).load_state()
    assert state is not None
    found: dict[str, Any] = state["model"]
    return found


def assert_same_run(found: Path, expected: Path) -> None:
    for ours, theirs in (
        (last_weights_of(found), last_weights_of(expected)),
        (weights_of(found), weights_of(expected)),
    ):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name


# What a run leaves


def test_a_run_folder_holds_four_files_and_nothing_temporary(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["ckpt.pt", "metrics.jsonl", "resume/plan.parquet", "resume/state.pt", "run.toml"]


def test_the_settings_of_a_run_come_back_from_its_folder(finished: tuple[Path, Result], data: str) -> None:
    folder, _ = finished
    assert RunFolder(folder).settings() == quick_settings(data)
    assert read_checkpoint(folder / "ckpt.pt").settings == quick_settings(data)


def test_metrics_are_lines_of_json_with_rising_steps(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if "event" not in line]
    events = [line["event"] for line in lines if "event" in line]
    assert events == sorted(events, key=["surplus", "prior", "finding"].index)
    assert events.count("prior") == 1
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert steps[-1] == result.num_steps == NUM_STEPS
    for record in records:
        assert record["validation_nats"] == pytest.approx(record["rate_nats"] + record["distortion_nats"])
        assert sum(record["column_nats"].values()) == pytest.approx(record["distortion_nats"])


def test_the_result_is_that_of_the_best_evaluation(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    events = [record for record in RunFolder(folder).metrics() if "event" in record]
    best = min(record["validation_nats"] for record in RunFolder(folder).metrics() if "event" not in record)
    (prior,) = [record["prior"] for record in events if record["event"] == "prior"]
    if prior == "normal":
        assert result.negative_elbo_nats == best
    else:
        assert result.negative_elbo_nats < best  # a prior fitted after training was better
    assert result.negative_elbo_nats == pytest.approx(result.rate_nats + result.distortion_nats)
    assert result.num_training_rows + result.num_held_out_rows == 240
    assert result.num_skipped_steps == 0


def test_what_is_found_at_the_end_is_logged_with_what_can_be_done(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    found = read_checkpoint(folder / "ckpt.pt").metrics["diagnosis"]["findings"]
    logged = [record["message"] for record in RunFolder(folder).metrics() if record.get("event") == "finding"]
    lit = [finding for finding in found if finding["light"] != "green"]
    assert lit, "a run of so few steps is not well"
    assert logged == [f"{each['subject']} {each['light']}: {each['text']}; {each['advice']}" for each in lit]


def test_the_checkpoint_scores_its_own_rows_as_the_result_says(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    checkpoint = read_checkpoint(folder / "ckpt.pt")
    assert evaluate(checkpoint.model, checkpoint.reservoir).negative_elbo_nats == pytest.approx(
        result.negative_elbo_nats, abs=1e-6
    )
    assert not checkpoint.model.training


def test_the_reservoir_holds_held_out_rows_and_no_training_row(finished: tuple[Path, Result], data: str) -> None:
    folder, result = finished
    checkpoint = read_checkpoint(folder / "ckpt.pt")
    rows = read_rows([data], checkpoint.schema)
    held_out = Split.of(240, share=0.2, max_rows=10_000, seed=1).held_out()
    assert held_out.sum() == result.num_held_out_rows
    for name, expected in select(rows, held_out).items():
        np.testing.assert_array_equal(checkpoint.reservoir[name], expected)


def test_the_plan_is_announced_before_the_first_report(data: str, tmp_path: Path) -> None:
    events: list[Plan | Report] = []
    train(quick_settings(data, max_steps=25), tmp_path / "run", announce=events.append, report=events.append)
    plan = events[0]
    assert isinstance(plan, Plan)
    assert [column.name for column in plan.schema] == ["height", "weight", "city", "member", "embedding"]
    assert (plan.num_files, plan.num_training_rows + plan.num_held_out_rows, plan.resumed_at_step) == (1, 240, 0)
    assert plan.num_weights > 0
    assert len(events) == 2


def test_the_same_settings_give_the_same_weights_in_another_folder(
    finished: tuple[Path, Result], data: str, tmp_path: Path
) -> None:
    train(quick_settings(data), tmp_path / "again")
    assert_same_run(tmp_path / "again", finished[0])


# Stops


def test_a_finished_run_returns_at_once_with_the_same_result(finished: tuple[Path, Result], data: str) -> None:
    folder, first = finished
    before = (folder / "ckpt.pt").read_bytes()
    reports: list[Report] = []
    second = train(quick_settings(data), folder, report=reports.append)
    assert not reports
    assert (folder / "ckpt.pt").read_bytes() == before
    assert second.negative_elbo_nats == first.negative_elbo_nats
    assert second.num_steps == first.num_steps


def stopping_at(num_steps: int, error: BaseException) -> Callable[[Report], None]:
    def stop(report: Report) -> None:
        if report.progress.step >= num_steps:
            raise error

    return stop


@pytest.mark.parametrize(("error", "stop_at"), [(KeyboardInterrupt(), 25), (RuntimeError("power"), 55)])
def test_a_stopped_run_ends_as_one_that_never_stopped(
    finished: tuple[Path, Result], data: str, tmp_path: Path, error: BaseException, stop_at: int
) -> None:
    every_step = quick_settings(data, checkpoint_every_s=0.0)
    with pytest.raises(type(error)):
        train(every_step, tmp_path / "run", report=stopping_at(stop_at, error))
    plans: list[Plan] = []
    train(every_step, tmp_path / "run", announce=plans.append)
    assert 0 < plans[0].resumed_at_step < NUM_STEPS
    found, expected = last_weights_of(tmp_path / "run"), last_weights_of(finished[0])
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    events = [record for record in RunFolder(tmp_path / "run").metrics() if record.get("event") == "resume"]
    assert [event["step"] for event in events] == [plans[0].resumed_at_step]


def test_a_resumed_run_has_only_the_time_that_is_left_of_its_budget(data: str, tmp_path: Path) -> None:
    quick = quick_settings(data, budget_s=600.0, checkpoint_every_s=0.0)
    settings = dataclasses.replace(quick, train=dataclasses.replace(quick.train, max_steps=None))
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", report=stopping_at(1, KeyboardInterrupt()))
    run = RunFolder(tmp_path / "run")
    state = run.load_state()
    assert state is not None
    run.save_state({**state, "progress": {**state["progress"], "elapsed_s": 599.9}})
    result = train(settings, tmp_path / "run")
    assert result.num_steps <= state["progress"]["step"] + FIRST_TIMING_STEP


def test_a_stopped_run_keeps_the_same_best_checkpoint(finished: tuple[Path, Result], data: str, tmp_path: Path) -> None:
    settings = quick_settings(data, checkpoint_every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", report=stopping_at(50, KeyboardInterrupt()))
    train(settings, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    finished: tuple[Path, Result], data: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(quick_settings(data), tmp_path / "run", report=stopping_at(25, KeyboardInterrupt()))
    assert not (tmp_path / "run" / "ckpt.pt").exists()
    train(quick_settings(data), tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_a_finished_run_without_its_checkpoint_writes_it_again(
    finished: tuple[Path, Result], data: str, tmp_path: Path
) -> None:
    # A kill between the last state and the checkpoint leaves exactly this.
    train(quick_settings(data), tmp_path / "run")
    (tmp_path / "run" / "ckpt.pt").unlink()
    result = train(quick_settings(data), tmp_path / "run")
    assert result.negative_elbo_nats == finished[1].negative_elbo_nats
    assert_same_run(tmp_path / "run", finished[0])


SCRIPT = """
import sys
from pathlib import Path
from parvae_pipeline.config import RunSettings, read_toml
from parvae_pipeline.train import train
train(RunSettings.from_mapping(read_toml(sys.argv[1])), sys.argv[2])
"""


def test_a_killed_process_loses_nothing(data: str, tmp_path: Path) -> None:
    settings = quick_settings(data, max_steps=140, checkpoint_every_s=0.0, patience=1000)
    config, killed, whole = tmp_path / "mine.toml", tmp_path / "killed", tmp_path / "whole"
    config.write_text(settings.to_toml())
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(config), str(killed)])
    try:
        give_up_s = time.monotonic() + 120.0
        while len(RunFolder(killed).metrics()) < 2 and process.poll() is None and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    plans: list[Plan] = []
    train(settings, killed, announce=plans.append)
    assert 0 < plans[0].resumed_at_step < 140
    assert [record["step"] for record in RunFolder(killed).metrics() if record.get("event") == "resume"] == [
        plans[0].resumed_at_step
    ]
    # The whole run needs no checkpoint on the way: its settings differ in that alone.
    train(quick_settings(data, max_steps=140, patience=1000), whole)
    found, expected = last_weights_of(killed), last_weights_of(whole)
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name].double() - expected[name].double()).flatten() for name in expected])
    assert float(difference.abs().max()) == 0.0


def test_a_line_cut_off_by_a_crash_costs_no_later_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "vali')
    run.log({"step": 3})
    assert [record["step"] for record in run.metrics()] == [1, 3]


# What a folder refuses


def test_other_settings_are_refused_with_the_difference(finished: tuple[Path, Result], data: str) -> None:
    folder, _ = finished
    with pytest.raises(SettingError, match=r"train\.batch_size is 32 there and 64 now.*another folder"):
        train(quick_settings(data, batch_size=64), folder)
    with pytest.raises(SettingError, match=r"train\.learning_rate is None there and 0\.5 now"):
        train(quick_settings(data, learning_rate=0.5), folder)


def test_changed_data_are_refused(data: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "people.parquet", people_table(240))
    settings = quick_settings(path, max_steps=25)
    train(settings, tmp_path / "run")
    write_parquet(tmp_path / "people.parquet", people_table(250))
    with pytest.raises(DataError, match="the data changed since the run"):
        train(settings, tmp_path / "run")


def test_a_file_in_place_of_the_folder_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SettingError, match="run is a file; give a folder"):
        train(quick_settings(data, max_steps=25), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_an_empty_folder_holds_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no run to resume"):
        RunFolder(tmp_path).settings()


def test_a_damaged_state_is_named(data: str, tmp_path: Path) -> None:
    train(quick_settings(data, max_steps=25), tmp_path / "run")
    state = tmp_path / "run" / "resume" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"state\.pt"):
        train(quick_settings(data, max_steps=25), tmp_path / "run")


def test_data_that_cannot_be_modelled_leave_no_folder(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "few.parquet", pa.table({"x": [1.0, 2.0]}))
    with pytest.raises(DataError, match="2 rows"):
        train(quick_settings(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
