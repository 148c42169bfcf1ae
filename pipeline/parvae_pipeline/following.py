"""What the first worker of a cluster writes to metrics.jsonl, told by the driver while it is written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parvae_pipeline.run_folder import RunFolder

POLL_S = 0.5


@contextlib.contextmanager
def following(run: RunFolder, log: Callable[[str], None]) -> Iterator[None]:
    """Pass on every record that is new, a line each."""
    done = threading.Event()
    seen = len(run.metrics())

    def follow() -> None:
        nonlocal seen
        while True:
            last = done.wait(POLL_S)
            records = run.metrics()
            for record in records[seen:]:
                log(_line(record))
            seen = len(records)
            if last:
                return

    thread = threading.Thread(target=follow, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _line(record: Mapping[str, Any]) -> str:
    if record.get("event") == "resume":
        return f"resumed at step {record['step']:,}"
    if "event" in record:
        return str(record["message"])
    return (
        f"step {record['step']:>7,} of {record['total_steps']:,}: {record['validation_nats']:.3f} nats a row held out, "
        f"{record['rows_per_s']:,.0f} rows/s"
    )
