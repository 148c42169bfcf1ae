"""Planning a data set of many row groups, and memory while streaming one that outgrows its budget.

    python benchmarks/plan_files.py

Every figure comes from a process of its own; memory is its peak resident set above that before the work. `plan` reads
the footers of 1,000 files of 10 (100) row groups of 20 columns and keeps what training needs of them; `kept` takes the
same from the file that an earlier plan left beside the run. `by_hand` is what a user would write: the footers read one
after another with `pyarrow.parquet.read_metadata` and held. Files are hard links to one, so that the page cache holds
them and the figures are of the work, not of a disk.

`stream_1x_mb` and `stream_10x_mb` are the peak resident memory of whole processes that plan, scan and stream two epochs
of 32 and 320 MiB of vectors with a budget of 24 MiB; `stream_10x_over_1x` is their ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import finish, parser

from parvae.files import find_files
from parvae_pipeline.config import DataSettings
from parvae_pipeline.data_plan import KeptPlan, plan_data
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.scan import scan
from parvae_pipeline.split import Split
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.training_data import open_data
from parvae_pipeline.units import plan_units

NUM_COLUMNS = 20
ROWS_OF_GROUP = 1_000
STREAM_BUDGET_MB = 24.0
STREAM_ROWS, STREAM_SIZE = 32_768, 256
"""Of one file: 32 MiB of float32, a little more than the budget."""


def main() -> None:
    """Print medians over alternating runs."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--work", nargs=2, metavar=("KIND", "FOLDER"), help="one measurement, in this process")
    options = arguments.parse_args()
    if options.work:
        print(json.dumps(WORK[options.work[0]](Path(options.work[1]))))
        return
    sizes = {"100": (10, 10)} if options.quick else {"10k": (1_000, 10), "100k": (1_000, 100)}
    repeats = 1 if options.quick else 3
    kinds = ("plan", "kept") if options.ours_only else ("plan", "kept", "by_hand")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (num_files, num_groups) in sizes.items():
            folder = Path(temporary) / name
            make_files(folder / "data", num_files, num_groups)
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
            for _ in range(repeats):
                for kind in kinds:
                    found[kind].append(in_a_process(kind, folder))
            for kind in kinds:
                for figure in ("s", "mb"):
                    values = [measured[figure] for measured in found[kind]]
                    figures[f"{kind}_{name}_{figure}"] = statistics.median(values)
            figures[f"kept_file_{name}_mb"] = (folder / "plan.parquet").stat().st_size / 2**20
        for times in (1, 10):
            folder = Path(temporary) / f"stream-{times}"
            make_vectors(folder, times)
            figures[f"stream_{times}x_mb"] = in_a_process("stream", folder)["mb"]
    figures["stream_10x_over_1x"] = figures["stream_10x_mb"] / figures["stream_1x_mb"]
    finish(figures, as_json=options.json)


def make_files(folder: Path, num_files: int, num_groups: int) -> None:
    """Files of `num_groups` row groups each: one, and hard links to it."""
    numbers = np.random.default_rng(0).normal(size=(NUM_COLUMNS, ROWS_OF_GROUP))
    table = pa.table({f"column {index}": values for index, values in enumerate(numbers)})
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "00000.parquet", table.schema) as writer:
        for _ in range(num_groups):
            writer.write_table(table)
    for index in range(1, num_files):
        (folder / f"{index:05}.parquet").hardlink_to(folder / "00000.parquet")


def make_vectors(folder: Path, num_files: int) -> None:
    """Files of one vector column."""
    values = np.random.default_rng(0).normal(size=STREAM_ROWS * STREAM_SIZE).astype(np.float32)
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(values), STREAM_SIZE)})
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "00000.parquet", row_group_size=4_096)
    for index in range(1, num_files):
        (folder / f"{index:05}.parquet").hardlink_to(folder / "00000.parquet")


def in_a_process(kind: str, folder: Path) -> dict[str, float]:
    """The figures of one measurement."""
    done = subprocess.run(
        [sys.executable, __file__, "--work", kind, str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def plan(folder: Path) -> dict[str, float]:
    """Read all footers, and leave the plan for `kept`."""
    settings = DataSettings(paths=(str(folder / "data"),))
    # Statistics read every row, and are no part of this figure: those of a few rows stand in.
    some_rows = statistics_of(pq.ParquetFile(folder / "data" / "00000.parquet").read_row_group(0).slice(0, 50))
    started_s, before_mb = time.perf_counter(), peak_mb()
    planned = plan_data(settings, KeptPlan(), scan=lambda _: some_rows)
    figures = {"s": time.perf_counter() - started_s, "mb": peak_mb() - before_mb}
    assert planned.to_keep is not None
    (folder / "plan.parquet").write_bytes(planned.to_keep)
    return figures


def kept(folder: Path) -> dict[str, float]:
    """Take the plan from the file that `plan` left."""
    settings = DataSettings(paths=(str(folder / "data"),))
    started_s, before_mb = time.perf_counter(), peak_mb()
    planned = plan_data(settings, KeptPlan.read(folder / "plan.parquet"))
    assert planned.to_keep is None
    return {"s": time.perf_counter() - started_s, "mb": peak_mb() - before_mb}


def by_hand(folder: Path) -> dict[str, float]:
    """List the folder, read the footers one by one, and hold them."""
    started_s, before_mb = time.perf_counter(), peak_mb()
    footers = [pq.read_metadata(path) for path in sorted((folder / "data").glob("*.parquet"))]
    num_rows = [footer.row_group(index).num_rows for footer in footers for index in range(footer.num_row_groups)]
    assert set(num_rows) == {ROWS_OF_GROUP}
    return {"s": time.perf_counter() - started_s, "mb": peak_mb() - before_mb}


def stream(folder: Path) -> dict[str, float]:
    """Plan, scan and stream two epochs; peak memory of the whole process."""
    units = plan_units(find_files([str(folder)]))
    schema = infer_schema(scan(units), overrides={}, label=None)
    split = Split.of(units.total_rows, share=0.1, max_rows=1_000, seed=0)
    data = open_data(
        units, schema, split, batch_size=128, seed=0, memory_budget_mb=STREAM_BUDGET_MB, num_first_rows=1_000
    )
    assert data.is_streamed
    for _ in islice(data.reader.batches(0), 2 * data.reader.steps_per_epoch):
        pass
    return {"mb": peak_mb()}


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MiB.

    Not getrusage's, which begins at what the process that started this one held.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 2**10


WORK = {"plan": plan, "kept": kept, "by_hand": by_hand, "stream": stream}

if __name__ == "__main__":
    main()
