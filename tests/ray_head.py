"""A head node of one's own, with the jobs server and token authentication, on free ports."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 60.0
MARKER = "PARVAE_TEST_CLUSTER"
"""In the environment of every process of a cluster: which cluster it is of, so that a test ends none of another."""
RAY = str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def ray_head(*, num_cpus: int) -> Iterator[dict[str, str]]:
    """The environment of those who talk to a new head node; the node ends with the block, and no other one does."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it: their paths must be short
    head, dashboard, client, agent, grpc, metrics = free_ports(6)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # "python" on the nodes is this one
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        MARKER: secrets.token_hex(8),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "OMP_NUM_THREADS": "1",
    }
    start = [RAY, "start", "--head", "--block", f"--num-cpus={num_cpus}", "--object-store-memory=200000000"]
    ports = [f"--port={head}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
    node = subprocess.Popen(
        [*start, *ports, f"--metrics-export-port={metrics}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait_for(address, node)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address, "RAY_ADDRESS": f"127.0.0.1:{head}"}
    finally:
        for process in processes_of(environment):  # a node that is asked to end may take half a minute
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        node.wait(timeout=WAIT_S)
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(cluster: dict[str, str], name: str = "") -> list[int]:
    """The processes of a cluster and of no other one, those with `name` in their command line."""
    ours, found = f"{MARKER}={cluster[MARKER]}", []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, marks = (entry / "cmdline").read_text(), (entry / "environ").read_text(errors="replace")
            except OSError:
                continue  # it has ended, or is another user's
            if name in command and ours in marks.split("\0"):
                found.append(int(entry.name))
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _wait_for(address: str, node: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while True:
        assert node.poll() is None, "the head node ended"
        assert time.monotonic() < deadline_s, "the jobs server does not answer"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and asks for the token
        except OSError:
            time.sleep(0.2)
