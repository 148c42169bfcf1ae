"""The jobs on a real local cluster: a folder scored by actors equals one scored in process, and is resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT
from ray_head import ray_head

from parvae.cli import vae


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head node of its own, and the environment of those who talk to it."""
    with ray_head(num_cpus=2) as environment:
        yield environment


@pytest.mark.slow
def test_a_folder_scored_on_the_cluster_equals_one_scored_here(
    cluster: dict[str, str], tmp_path: Path, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        pq.write_table(mixed_table.slice(100 * index, 100), tmp_path / "in" / f"{index}.parquet")
    (tmp_path / "in" / "broken.parquet").write_bytes(b"no parquet")
    arguments = [str(mixed_bundle), str(tmp_path / "in"), "--alpha", "0.1"]

    def submit() -> tuple[int, dict[str, object]]:
        job = [
            sys.executable,
            str(ROOT / "jobs" / "score_parquet.py"),
            *arguments,
            "-o",
            str(tmp_path / "cluster"),
            "--json",
        ]
        done = subprocess.run(job, capture_output=True, text=True, env=cluster)
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    code, first = submit()
    assert (code, first["files"], first["rows"], first["failed"]) == (1, 5, 400, 1)
    CliRunner().invoke(vae, ["score", *arguments, "-o", str(tmp_path / "here")])
    for index in range(4):
        name = f"{index}.parquet"
        assert pq.read_table(tmp_path / "cluster" / name).equals(pq.read_table(tmp_path / "here" / name))
    (tmp_path / "in" / "broken.parquet").unlink()
    code, second = submit()
    assert (code, second["already_done"], second["failed"]) == (0, 4, 0)
