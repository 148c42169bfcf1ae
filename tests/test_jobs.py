"""Scoring on a real local cluster: what actors write equals what one process writes, and is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT
from ray_head import processes_of

from parvae.cli import vae

WAIT_S = 200.0


def job(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "score_parquet.py"), *arguments, "--json"]


def run(environment: dict[str, str], *arguments: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(job(*arguments), capture_output=True, text=True, env=environment, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def assert_same_files(found: Path, expected: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in expected.iterdir():
        assert path.read_bytes() == (found / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_a_folder_scored_on_the_cluster_equals_one_scored_here(
    cluster: dict[str, str], tmp_path: Path, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        pq.write_table(mixed_table.slice(100 * index, 100), tmp_path / "in" / f"{index}.parquet")
    pq.write_table(pa.concat_tables([mixed_table] * 5), tmp_path / "in" / "large.parquet", row_group_size=130)
    (tmp_path / "in" / "broken.parquet").write_bytes(b"no parquet")
    arguments = [str(mixed_bundle), str(tmp_path / "in"), "--fdr", "0.3", "--explain", "1"]
    on_cluster = [*arguments, "-o", str(tmp_path / "cluster"), "--part-mb", "0.02"]
    code, first = run(cluster, *on_cluster)
    assert (code, first["files"], first["rows"], first["failed"]) == (1, 6, 2400, 1)
    CliRunner().invoke(vae, ["score", *arguments, "-o", str(tmp_path / "here")])
    assert_same_files(tmp_path / "cluster", tmp_path / "here")
    (tmp_path / "in" / "broken.parquet").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cluster").glob("*.parquet")}
    code, second = run(cluster, *on_cluster)
    assert (code, second["already_done"], second["failed"]) == (0, 5, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in (tmp_path / "cluster").iterdir()) == sorted(path.name for path in before)


@pytest.mark.slow
def test_a_scoring_job_killed_midway_is_finished_by_the_next(
    cluster: dict[str, str], tmp_path: Path, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    (tmp_path / "in").mkdir()
    table = pa.concat_tables([mixed_table] * 25)
    for index in range(6):
        pq.write_table(table.slice(400 * index), tmp_path / "in" / f"{index}.parquet", row_group_size=2000)
    pq.write_table(pa.concat_tables([table] * 8), tmp_path / "in" / "large.parquet", row_group_size=2000)
    out = tmp_path / "out"
    arguments = [str(mixed_bundle), str(tmp_path / "in"), "--alpha", "0.1"]
    on_cluster = [*arguments, "-o", str(out), "--part-mb", "0.05"]
    process = subprocess.Popen(job(*on_cluster), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=cluster)
    deadline_s = time.monotonic() + WAIT_S
    while not list(out.glob(".large.parquet.*.part")) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(kept) < 7
    assert list(out.glob(".large.parquet.*.part")), "the job was not killed midway"
    second = subprocess.Popen(job(*on_cluster), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cluster)
    while not (scorers := processes_of(cluster, "ray::Scorer")) and second.poll() is None:
        time.sleep(0.001)
    os.kill(scorers[0], signal.SIGKILL)  # an actor that dies is started anew
    output, errors = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert (result["files"], result["failed"]) == (7, 0)
    assert result["already_done"] >= len(kept)  # actors may have outlived the driver by a moment
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    CliRunner().invoke(vae, ["score", *arguments, "-o", str(tmp_path / "whole")])
    assert_same_files(out, tmp_path / "whole")


@pytest.mark.slow
def test_more_actors_than_cpus_are_refused_at_once(
    cluster: dict[str, str], tmp_path: Path, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    pq.write_table(mixed_table, tmp_path / "in.parquet")
    arguments = [str(mixed_bundle), str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out"), "--workers", "3"]
    done = subprocess.run(job(*arguments), capture_output=True, text=True, env=cluster, check=False)
    assert done.returncode == 2
    assert "3 actors need as many CPUs; the cluster has 2: take fewer with --workers" in done.stderr
    assert not (tmp_path / "out").exists()
