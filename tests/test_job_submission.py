"""Training submitted to a real cluster with token authentication, as jobs/README.md says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from ray_head import RAY

from parvae_pipeline.run_folder import RunFolder


def submit(environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    job = [RAY, "job", "submit", "--address", environment["RAY_API_SERVER_ADDRESS"]]
    return subprocess.run(
        [*job, "--runtime-env", "jobs/runtime_env.yaml", "--", *entrypoint],
        capture_output=True,
        text=True,
        env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
        cwd=ROOT,
        check=False,
    )


@pytest.mark.slow
def test_a_submitted_job_trains_and_a_second_one_finds_nothing_to_do(
    cluster: dict[str, str], shared_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ["train.max_steps=30", "train.batch_size=64", "model.channels=16", "model.width=32"]
    settings += ["model.latent_size=4", "data.max_held_out_rows=200"]
    options = [part for setting in settings for part in ("--set", setting)]
    data = str((shared_data / "mnist" / "test-00.parquet").resolve())
    train = ["python", "jobs/train.py", data, "-o", str(run), "--label", "label", "--workers", "2", *options]
    first = submit(cluster, *train)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "30 of 30" in first.stdout
    records = RunFolder(run).metrics()
    assert records[-1]["step"] == 30
    written_ns = (run / "ckpt.pt").stat().st_mtime_ns
    second = submit(cluster, *train)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [record for record in RunFolder(run).metrics()[len(records) :] if "event" not in record] == []
    assert (run / "ckpt.pt").stat().st_mtime_ns == written_ns


@pytest.mark.slow
def test_the_nodes_run_the_code_that_was_submitted(cluster: dict[str, str]) -> None:
    names = "parvae", "parvae_pipeline", "parvae_export"
    code = f"import ray; where = lambda: [__import__(name).__file__ for name in {names}]; "
    code += "print(*where(), *ray.get(ray.remote(where).remote()))"
    done = submit(cluster, "python", "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = next(line for line in done.stdout.splitlines() if "__init__.py" in line).split()
    assert len(paths) == 6
    assert all("runtime_resources/working_dir_files" in path for path in paths), paths


@pytest.mark.slow
def test_who_has_no_token_is_turned_away(cluster: dict[str, str]) -> None:
    stranger = {**cluster, "RAY_AUTH_TOKEN": "0" * 64}
    done = submit(stranger, "python", "-c", "print()")
    assert done.returncode != 0
    assert "authentication token" in done.stdout + done.stderr
