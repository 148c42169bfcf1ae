"""The manifests and the page of the jobs say what the code accepts."""

from __future__ import annotations

import re
import runpy
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import ROOT

JOBS = ROOT / "jobs"
MANIFESTS = sorted((JOBS / "kuberay").glob("*.yaml"))


def command_of(job: str) -> click.Command:
    """The command that a job runs."""
    (found,) = [value for value in runpy.run_path(str(ROOT / job)).values() if isinstance(value, click.Command)]
    return found


def parsed(entrypoint: str) -> dict[str, Any]:
    """The options of a job as its command understands them."""
    interpreter, job, *arguments = shlex.split(entrypoint)
    assert interpreter == "python"
    return command_of(job).make_context(job, arguments).params


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_asks_for_what_its_nodes_have(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    options = parsed(manifest["spec"]["entrypoint"])
    groups = cluster["workerGroupSpecs"]
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["cpu"] == group["rayStartParams"]["num-cpus"]
        assert limits.get("nvidia.com/gpu") == group["rayStartParams"].get("num-gpus")
    if "train" in path.stem:
        fitting = [group for group in groups if not options["gpus"] or "num-gpus" in group["rayStartParams"]]
        per_node = [int(group["rayStartParams"]["num-cpus"]) // options["cpus_per_worker"] for group in fitting]
        num_fitting = sum(group["replicas"] * each for group, each in zip(fitting, per_node, strict=True))
        assert num_fitting >= options["workers"]


def test_the_page_names_options_that_there_are() -> None:
    page = (JOBS / "README.md").read_text()
    for job in ("train.py", "score_parquet.py"):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{job}`"))
        options = {name for parameter in command_of(f"jobs/{job}").params for name in parameter.opts}
        named = set(re.findall(r"--[a-z-]+", row))
        assert named
        assert named <= options
    (entrypoint,) = re.findall(r"-- (python jobs/train\.py .*)", page)
    assert parsed(entrypoint)["workers"] == 4
