"""Training on Ray workers, with real processes: same result, a killed worker, a killed driver, too small a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import people_table, write_parquet
from conftest import DIGITS
from ray_head import processes_of

from parvae.errors import SettingError
from parvae_pipeline.cluster import ClusterSettings, check_resources, workers_that_fit
from parvae_pipeline.run_folder import torch_load

WAIT_S = 120.0


def command(folder: Path, *options: str, data: Path = DIGITS) -> list[str]:
    settings = ["train.max_steps=240", "train.batch_size=128", "train.checkpoint_every_s=0.2", "model.width=32"]
    assignments = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "parvae", "train", str(data), "-o", str(folder), "--json", *assignments, *options]


def environment() -> dict[str, str]:
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    return {**os.environ, **quick, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch_load(folder / "ckpt.pt")["weights"]
    return weights


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    return max(
        float((first[name].double() - second[name].double()).abs().max()) for name in first if first[name].numel()
    )


def wait_for_state(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until there is something to resume from, and more to do."""
    deadline_s = time.monotonic() + WAIT_S
    while not (folder / "resume" / "state.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "no state was written"
        time.sleep(0.02)


def on_cluster(folder: Path, *options: str, data: Path = DIGITS) -> list[str]:
    return command(folder, "--workers", "2", "--address", "auto", *options, data=data)


def kill_a_worker(cluster: dict[str, str]) -> None:
    workers = processes_of(cluster, "ray::RayTrainWorker")
    assert workers, "no worker is running"
    os.kill(workers[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def uninterrupted(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two workers that nobody disturbs."""
    folder = tmp_path_factory.mktemp("cluster") / "run"
    done = subprocess.run(on_cluster(folder), capture_output=True, text=True, env=cluster, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_workers_come_to_what_one_process_comes_to(uninterrupted: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "one"), capture_output=True, text=True, env=environment(), check=True)
    alone = json.loads(done.stdout.splitlines()[-1])
    together = torch_load(uninterrupted / "ckpt.pt")
    nats = json.loads(together["facts"])["metrics"]["negative_elbo_nats"]
    # The same rows and the same noise in the same steps; sums are rounded in another order.
    assert nats == pytest.approx(alone["negative_elbo_nats"], abs=0.1)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(uninterrupted: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(on_cluster(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cluster)
    wait_for_state(run, process)
    kill_a_worker(cluster)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(event.get("event") == "resume" for event in events)
    assert largest_difference(run, uninterrupted) <= 1e-5


@pytest.mark.slow
def test_a_killed_driver_is_resumed_by_the_same_command(
    uninterrupted: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        on_cluster(run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster,
        start_new_session=True,
    )
    wait_for_state(run, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(on_cluster(run), capture_output=True, text=True, env=cluster, check=False)
    assert done.returncode == 0, done.stderr
    assert largest_difference(run, uninterrupted) <= 1e-5


@pytest.mark.slow
def test_more_workers_than_row_groups_are_refused_before_the_first_step(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    data = Path(write_parquet(tmp_path / "one.parquet", people_table(240)))
    streamed = on_cluster(tmp_path / "run", "--set", "data.memory_budget_mb=0.002", data=data)
    done = subprocess.run(streamed, capture_output=True, text=True, env=cluster, check=False)
    assert done.returncode == 1
    assert "2 workers share 1 row groups" in done.stderr
    assert "write the data with more row groups, or use fewer workers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.toml").exists()


PLAN = """
import json, sys
import ray
from parvae.errors import DataError
from parvae_pipeline import cluster, scan
from parvae_pipeline.config import DataSettings
from parvae_pipeline.data_plan import KeptPlan, plan_data

cluster.FILES_PER_TASK, scan.PART_BYTES = 2, 3_000
data = DataSettings(paths=(sys.argv[1],))
here = plan_data(data, KeptPlan())
ray.init(address="auto", log_to_driver=False)
get, taken = ray.get, []
ray.get = lambda result: taken.append(result) or get(result)
there = plan_data(data, KeptPlan(), read=cluster.read_in_tasks, scan=cluster.scan_in_tasks)
print(json.dumps({"tasks": len(taken), "same": here.to_keep == there.to_keep}))
open(sys.argv[1] + "/broken.parquet", "wb").write(b"no parquet")
try:
    plan_data(data, KeptPlan(), read=cluster.read_in_tasks)
except DataError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_footers_and_statistics_read_in_tasks_make_the_same_plan(cluster: dict[str, str], tmp_path: Path) -> None:
    for index in range(5):
        write_parquet(tmp_path / f"{index}.parquet", people_table(120, seed=index), row_group_size=25)
    planned = [sys.executable, "-c", PLAN, str(tmp_path)]
    done = subprocess.run(planned, capture_output=True, text=True, env=cluster, check=False)
    assert done.returncode == 0, done.stderr
    same, broken = map(json.loads, done.stdout.splitlines())
    assert same["same"]
    assert same["tasks"] > 3 + 1, "three tasks read footers, and several the rows"
    assert broken.startswith(f"{tmp_path}/broken.parquet cannot be read as Parquet")


def test_more_workers_than_the_cluster_can_hold_are_refused_at_once() -> None:
    with pytest.raises(SettingError, match=r"4 workers with 2 CPUs each need 8 CPUs; the cluster has 6.*fewer"):
        check_resources(ClusterSettings(num_workers=4, cpus_per_worker=2), [{"CPU": 4.0}, {"CPU": 2.0}])
    check_resources(ClusterSettings(num_workers=3, cpus_per_worker=2), [{"CPU": 4.0}, {"CPU": 2.0}])


def test_more_gpus_than_there_are_are_refused_at_once() -> None:
    with pytest.raises(SettingError, match=r"3 workers with 1 GPUs each need 3 GPUs; the cluster has 2.*fewer"):
        check_resources(ClusterSettings(num_workers=3, gpus=True), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}])
    check_resources(ClusterSettings(num_workers=2, gpus=True), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}])


def test_workers_that_no_node_can_hold_are_refused_at_once() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    with pytest.raises(SettingError, match=r"3 workers with 2 CPUs each do not fit the 2 nodes .* hold 2 of them"):
        check_resources(ClusterSettings(num_workers=3, cpus_per_worker=2), nodes)
    with pytest.raises(SettingError, match=r"1 workers with 4 CPUs .* take fewer CPUs each, or no workers"):
        check_resources(ClusterSettings(num_workers=1, cpus_per_worker=4), nodes)
    assert workers_that_fit(ClusterSettings(num_workers=3, cpus_per_worker=2), nodes) == 2


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_in_one_sentence(cluster: dict[str, str], tmp_path: Path) -> None:
    # Ray's workers work in a folder of their own, so this path means another place to each process.
    folder = Path("/proc/self/cwd/run")
    if not folder.parent.exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        command(folder, "--workers", "1", "--address", "auto"),
        capture_output=True,
        text=True,
        env=cluster,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "/proc/self/cwd/run is not shared between the nodes of the cluster; give a folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_lost_node_leaves_the_run_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": health})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = subprocess.Popen(
            [part for part in command(run, "--workers", "2", "--address", cluster.address) if part != "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        wait_for_state(run, process)
        cluster.remove_node(node, allow_graceful=False)
        output, errors = process.communicate(timeout=280)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, errors
    assert "a worker was lost; starting anew with 1 of 2 workers" in output
    assert json.loads(torch_load(run / "ckpt.pt")["facts"])["metrics"]["num_steps"] == 240


@pytest.mark.parametrize("field", ["num_workers", "cpus_per_worker", "max_failures"])
def test_cluster_settings_are_checked(field: str) -> None:
    with pytest.raises(SettingError, match=field):
        ClusterSettings(**{field: -1})
