"""The same training on many workers, under Ray Train. No other module of training imports ray.

Ray starts the workers and joins them in a process group. What is trained, resumed and written is `train.train`: every
worker runs it, and the run folder is the only memory between two starts. When a worker or a node is lost, the driver
starts as many workers anew as the nodes that are left can hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from parvae.errors import BundleError, DataError, Error, SettingError
from parvae.files import DataFile
from parvae.storage import Place, place_of, write_whole
from parvae_pipeline.config import RunSettings
from parvae_pipeline.data_plan import KeptPlan, plan_data
from parvae_pipeline.device import CPU
from parvae_pipeline.following import following
from parvae_pipeline.run_folder import RunFolder
from parvae_pipeline.scan import Statistics, merged, parts_of, scan
from parvae_pipeline.train import Result, train
from parvae_pipeline.units import Footer, Units, read_footers
from parvae_pipeline.world import World

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

SHARED_NAME, OUTCOME_NAME = "resume/shared", "resume/outcome.json"
FILES_PER_TASK = 64
TASKS_AHEAD = 2
"""Tasks begun for each CPU whose results nobody has taken yet."""
GROUP_TIMEOUT_S = 600
"""How long a worker waits for the others before it gives up; the slowest thing between two messages is reading data."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How many workers, and what each of them gets."""

    num_workers: int = 1
    cpus_per_worker: int = 1
    gpus: bool = False
    """One GPU for each worker."""
    address: str | None = None
    """Of a running cluster ("auto", "ray://host:10001"); None starts one on this machine."""
    max_failures: int = 3
    """Starts anew after a worker or node was lost."""

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray sets aside for a worker."""
        return {"CPU": self.cpus_per_worker, **({"GPU": 1} if self.gpus else {})}

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)!r}; it must be at least 1")
        if self.max_failures < 0:
            raise SettingError(f"max_failures is {self.max_failures!r}; it must be 0 or more")


def train_on_cluster(
    settings: RunSettings,
    folder: str | Place,
    cluster: ClusterSettings,
    *,
    log: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train on `cluster.num_workers` workers and leave the same run folder as one process would.

    `log` gets a line for every evaluation and every start. Raises SettingError when the cluster has less than is asked,
    DataError when the folder is not shared between its nodes.
    """
    path = place_of(folder).absolute()
    run = RunFolder(path)
    run.require_same(settings)
    with _connected(cluster):
        check_resources(cluster, _nodes())
        _plan(settings, run)
        (path / OUTCOME_NAME).unlink(missing_ok=True)
        num_workers = cluster.num_workers
        with following(run, log):
            for num_failures in range(cluster.max_failures + 1):
                try:
                    _fit(settings, path, cluster, num_workers)
                    break
                except TrainingFailedError as error:
                    _raise_ours(error)
                    if num_failures == cluster.max_failures:
                        raise
                    num_workers = min(cluster.num_workers, workers_that_fit(cluster, _nodes()))
                    if not num_workers:
                        raise SettingError(
                            "a node was lost, and those that are left hold no worker: start a node and give the same "
                            "command again"
                        ) from error
                    log(f"a worker was lost; starting anew with {num_workers} of {cluster.num_workers} workers")
    return _outcome(path / OUTCOME_NAME)


def check_resources(cluster: ClusterSettings, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise SettingError when the nodes can never hold the workers: Ray would wait for them for ever."""
    for kind, each in cluster.resources_per_worker.items():
        wanted, found = int(cluster.num_workers * each), int(sum(node.get(kind, 0) for node in nodes))
        if wanted > found:
            raise SettingError(
                f"{cluster.num_workers} workers with {int(each)} {kind}s each need {wanted} {kind}s; the cluster "
                f"has {found}: take fewer workers, fewer {kind}s each, or start more nodes"
            )
    fitting = workers_that_fit(cluster, nodes)
    if fitting < cluster.num_workers:
        raise SettingError(
            f"{cluster.num_workers} workers with {cluster.cpus_per_worker} CPUs each do not fit the {len(nodes)} nodes "
            f"of the cluster, which hold {fitting} of them: take fewer CPUs each, or {fitting or 'no'} workers"
        )


def workers_that_fit(cluster: ClusterSettings, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers these nodes hold; a worker lives on one node."""
    return sum(
        int(min(node.get(kind, 0) // each for kind, each in cluster.resources_per_worker.items())) for node in nodes
    )


def _nodes() -> list[Mapping[str, float]]:
    """What every living node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _plan(settings: RunSettings, run: RunFolder) -> None:
    """Read footers and statistics in tasks all over the cluster, and leave the plan where the workers look for it."""
    plan = plan_data(
        settings.data,
        KeptPlan.read(run.plan_path),
        with_shapes=not settings.model.denoising,
        read=read_in_tasks,
        scan=scan_in_tasks,
    )
    if plan.to_keep is not None:
        write_whole(run.plan_path, plan.to_keep)


def read_in_tasks(files: Sequence[DataFile]) -> Iterator[Footer]:
    """What `read_footers` gives, read all over the cluster."""
    groups = [files[first : first + FILES_PER_TASK] for first in range(0, len(files), FILES_PER_TASK)]
    return chain.from_iterable(_in_tasks(_read_group, groups))


def scan_in_tasks(units: Units) -> Statistics:
    """What `scan` gives, read all over the cluster."""
    parts = [units.part(part.start, part.stop) for part in parts_of(units)]
    return merged(_in_tasks(_scan_part, parts)) if len(parts) > 1 else scan(units)


def _read_group(files: Sequence[DataFile]) -> list[Footer]:
    return list(read_footers(files))


def _scan_part(units: Units) -> Statistics:
    pa.set_cpu_count(1)  # of a task
    return scan(units)


def _in_tasks(function: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`function` of every item in tasks of one CPU, in order; one item alone is done here, which is quicker.

    A task whose node is lost is done again; an error of ours is raised as it is.
    """
    if len(items) <= 1:
        yield from map(function, items)
        return
    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(function)
    num_ahead = TASKS_AHEAD * int(sum(node.get("CPU", 0) for node in _nodes()))
    waiting = deque(task.remote(item) for item in items[:num_ahead])
    for index in range(len(items)):
        try:
            yield ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Error) else error from None
        if index + num_ahead < len(items):
            waiting.append(task.remote(items[index + num_ahead]))


def _fit(settings: RunSettings, path: Place, cluster: ClusterSettings, num_workers: int) -> None:
    """One start of the workers, to the end of the run or to the first failure."""
    token = uuid.uuid4().hex
    write_whole(path / SHARED_NAME, token.encode())
    TorchTrainer(
        _work,
        train_loop_config={
            "settings": settings.to_toml(),
            "folder": str(path),
            "token": token,
            "cpus_per_worker": cluster.cpus_per_worker,
            "gpus": cluster.gpus,
        },
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=cluster.gpus, resources_per_worker=cluster.resources_per_worker
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.gpus else "gloo", timeout_s=GROUP_TIMEOUT_S),
        run_config=RunConfig(
            # Ray's own records go beside the run; what they hold is of no use to the next start.
            name=f"ray-{token[:8]}",
            storage_path=str(path / "resume"),
            # Ray would wait without end for a node that is gone: who starts anew, and with how many, is decided here.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    ).fit()


def _raise_ours(error: TrainingFailedError) -> None:
    """Raise the error of ours that a worker ended with, if it was one: starting anew would not mend it."""
    if isinstance(error, WorkerGroupError):
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)  # Ray wraps what a worker raises
            if isinstance(cause, Error):
                raise cause from None


def _work(config: dict[str, Any]) -> None:
    """What one worker does. Errors of ours come back in a file: Ray would show a traceback, and try again."""
    path = place_of(config["folder"])
    marker = path / SHARED_NAME
    if not marker.is_file() or marker.read_bytes().decode() != config["token"]:
        raise DataError(f"{path} is not shared between the nodes of the cluster; give a folder that all see with -o")
    world = World.of_this_process()
    settings = RunSettings.from_mapping(tomllib.loads(config["settings"]))
    try:
        result = train(
            settings,
            path,
            world=world,
            num_threads=config["cpus_per_worker"],
            device=get_device() if config["gpus"] else CPU,
        )
        document: dict[str, Any] = {"result": {**vars(result), "folder": str(path)}}
        document["result"]["checkpoint_path"] = str(result.checkpoint_path)
    except Error as error:
        document = {"error": type(error).__name__, "message": str(error)}
    if world.is_first:
        write_whole(path / OUTCOME_NAME, json.dumps(document).encode())


def _outcome(path: Place) -> Result:
    """What the first worker left."""
    document = json.loads(path.read_bytes())
    if "error" in document:
        kinds = {"DataError": DataError, "SettingError": SettingError, "BundleError": BundleError}
        raise kinds.get(document["error"], Error)(document["message"])
    paths = {name: place_of(document["result"][name]) for name in ("folder", "checkpoint_path")}
    return Result(**{**document["result"], **paths})


@contextlib.contextmanager
def _connected(cluster: ClusterSettings) -> Iterator[None]:
    """A connection to the cluster that was named, or to one of our own that ends with the run."""
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if cluster.address is None:
            ray.init(include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
