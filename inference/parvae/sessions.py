"""onnxruntime sessions that make no noise: no telemetry, no spinning, as many threads as they are told."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime


class Sessions:
    """One session a graph, opened at first use under a lock, opened anew after a fork, picklable."""

    def __init__(self, graphs: Mapping[str, bytes], *, threads: int, low_memory: bool) -> None:
        self._graphs = dict(graphs)
        self._threads = threads
        self._low_memory = low_memory
        self._clear()

    def run(
        self, graph: str, inputs: Mapping[str, NDArray[Any]], *, without: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """The outputs of `graph` by name, but those that are named."""
        session = self._session(graph)
        names = [output.name for output in session.get_outputs() if output.name not in without]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        # A forked child inherits sessions without their threads, and perhaps a lock that is held for ever: both are
        # kept by process. The lock is there because creating sessions from two threads at once races.
        process = os.getpid()
        with self._locks.setdefault(process, threading.Lock()):
            if (process, graph) not in self._open:
                self._open[process, graph] = open_session(self._graphs[graph], self._threads, self._low_memory)
            return self._open[process, graph]

    def _clear(self) -> None:
        self._open: dict[tuple[int, str], onnxruntime.InferenceSession] = {}
        self._locks: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_graphs": self._graphs, "_threads": self._threads, "_low_memory": self._low_memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()


def open_session(graph: bytes, threads: int, low_memory: bool = False) -> onnxruntime.InferenceSession:
    """A CPU session for the bytes of one graph."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    # Spinning threads burn a core between calls for no gain at these sizes (measured: 0.455 against 0.053 CPU-s).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = not low_memory
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def import_onnxruntime() -> Any:
    """onnxruntime with its telemetry off: since 1.29 it starts a thread and writes to the home folder by default.

    The variable must be set before the import, and stays set so that child processes are silent too.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
