"""How fast a bundle runs on this machine, with what an application calls: no file is read, nothing is skipped.

The rows are drawn from the model, as arrays by column name. Latencies are those of calls with one row, one call after
the other. Rows/s are those of larger calls, `threads` of them at a time over one model, as `vae score` works.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.bundle import Bundle
from parvae.errors import SettingError
from parvae.model import VAE
from parvae.rows import Arrays
from parvae.sessions import import_onnxruntime

MIN_CALLS, MAX_CALLS = 100, 10_000
"""Of one row each; the 99th percentile of fewer would be their slowest."""

CALLS: Mapping[str, Callable[[VAE, Arrays, int], object]] = {
    "score": lambda vae, rows, num_rows: vae.score(rows).p_value,
    "encode": lambda vae, rows, num_rows: vae.encode(rows),
    "sample": lambda vae, rows, num_rows: vae.sample(num_rows),
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One verb on this machine."""

    verb: str
    num_calls: int
    median_ms: float
    """Of a call with one row."""
    p99_ms: float
    rows_per_s: int
    """Of calls with many rows."""

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms a row (99 %: {self.p99_ms:.3f} ms), {self.rows_per_s:,} rows/s in batches"


def measure(bundle: Bundle, *, threads: int = 1, batch_rows: int = 1024, budget_s: float = 1.0) -> list[Speed]:
    """Time every verb, about `budget_s` for its calls with one row and as much for those with `batch_rows`.

    Raises SettingError when a setting is not positive.
    """
    for name, value in (("threads", threads), ("batch_rows", batch_rows), ("budget_s", budget_s)):
        if value <= 0:
            raise SettingError(f"{name} is {value}; it must be above 0")
    vae = VAE(bundle)
    one, many = vae.sample(1), vae.sample(batch_rows)
    speeds = []
    for verb, call in CALLS.items():
        call(vae, one, 1)  # opens the session
        latencies_ms = 1e3 * _call_times_s(partial(call, vae, one, 1), budget_s)
        rate = _calls_per_s(partial(call, vae, many, batch_rows), threads, budget_s)
        speeds.append(
            Speed(
                verb=verb,
                num_calls=len(latencies_ms),
                median_ms=float(np.median(latencies_ms)),
                p99_ms=float(np.quantile(latencies_ms, 0.99)),
                rows_per_s=round(batch_rows * rate),
            )
        )
    return speeds


def machine() -> dict[str, Any]:
    """What the figures depend on beside the model."""
    from parvae import __version__

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": f"parvae {__version__}, python {platform.python_version()}, "
        f"onnxruntime {import_onnxruntime().__version__}, numpy {np.__version__}",
    }


def _call_times_s(call: Callable[[], object], budget_s: float) -> NDArray[np.float64]:
    times_s: list[float] = []
    started_s = time.perf_counter()
    while len(times_s) < MIN_CALLS or (time.perf_counter() - started_s < budget_s and len(times_s) < MAX_CALLS):
        before_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - before_s)
    return np.array(times_s)


def _calls_per_s(call: Callable[[], object], threads: int, budget_s: float) -> float:
    """Every thread calls until the time is up; the last calls are waited for, and counted."""

    def work(_: int) -> int:
        num_calls = 0
        while num_calls == 0 or time.perf_counter() - started_s < budget_s:
            call()
            num_calls += 1
        return num_calls

    call()
    with ThreadPoolExecutor(threads) as workers:
        started_s = time.perf_counter()
        num_calls = sum(workers.map(work, range(threads)))
        return num_calls / (time.perf_counter() - started_s)


def processor() -> str:
    """The name of the processor."""
    facts = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
