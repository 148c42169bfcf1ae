"""Bulk scoring of Parquet beside bare onnxruntime, Ray Data around the same graph, and PyOD's VAE on the same columns.

    python benchmarks/scoring.py

The rows are those of ADBench's magic.gamma (10 numbers), repeated. CONFIGURATIONS names the models and their graphs:
the score of a model of default width, of one 128 wide, and the encoder of that one, which is about as much as a plain
network of two layers. Rates are rows a second with 1 and 2 threads, medians of alternating runs:

ours      files in, files out, as `vae score` and `vae encode` do
bare      the same graph on arrays in memory: one call a thread at a time, of as many rows as are fastest
ray_data  read_parquet, map_batches, write_parquet on two CPUs; a session in every worker process, made once
pyod_vae  decision_function on an array in memory, two threads of torch

Memory is the peak of a whole process that scores files of 500,000 and of 5 million rows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import alternating, finish, parser, trained

import parvae
from parvae.bulk import encode_transform, plan, run, score_transform
from parvae.bundle import read_bundle
from parvae.files import find_files
from parvae.rows import read_inputs
from parvae.sessions import open_session
from parvae.stream import Transform

CONFIGURATIONS: Mapping[str, tuple[str, list[str]]] = {
    "score_default": ("score", []),
    "score_128": ("score", ["--set", "model.width=128"]),
    "encode_128": ("encode", ["--set", "model.width=128"]),
}
"""The graph, and the settings of the model beside the defaults."""
TRANSFORMS: Mapping[str, Callable[[parvae.VAE], Transform]] = {
    "score": partial(score_transform, alpha=0.01),
    "encode": encode_transform,
}
NUM_FILES, ROWS_OF_GROUP = 8, 65_536
BATCHES = (256, 1_024)
"""Rows of a bare call; the faster of them counts."""
THREADS = (1, 2)
MEMORY_ROWS: Mapping[str, Mapping[str, int]] = {
    "full": {"small": 500_000, "large": 5_000_000},
    "quick": {"small": 10_000, "large": 20_000},
}


def main() -> None:
    """Print rates, their ratios, and peak memory."""
    options = parser(__doc__ or "").parse_args()
    num_rows, repeats = (4_096, 1) if options.quick else (262_144, 5)
    names = ["score_128"] if options.quick else list(CONFIGURATIONS)
    real = pq.read_table(options.data / "adbench" / "magic.gamma.parquet")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = repeated_files(folder / "data", real, num_rows, NUM_FILES)
        contenders: dict[str, Callable[[], float]] = {}
        models: dict[str, Path] = {}
        for name in names:
            verb, settings = CONFIGURATIONS[name]
            key = " ".join(settings)
            if key not in models:
                models[key] = model_of(folder / f"run{len(models)}", options.data, settings, quick=options.quick)
            vae = parvae.load(models[key])
            for threads in THREADS:
                contenders[f"{name}_ours_{threads}"] = partial(ours, vae, verb, folder, num_rows, threads)
                contenders[f"{name}_bare_{threads}"] = bare(vae, models[key], verb, rows, threads)
            if not options.ours_only:
                contenders[f"{name}_ray_data"] = partial(ray_data, models[key], verb, folder, num_rows)
        if not options.ours_only:
            contenders["pyod_vae"] = pyod_vae(rows, quick=options.quick)
            start_ray()
        for contender in contenders.values():
            contender()  # workers start, sessions open
        figures |= alternating(contenders, repeats=repeats)
        for name, size in MEMORY_ROWS["quick" if options.quick else "full"].items():
            figures[f"memory_{name}_mb"] = peak_mb(folder, real, size, list(models.values())[-1])
    figures |= ratios(figures, names)
    finish(figures, as_json=options.json)


def ratios(figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What the rates say beside one another."""
    found = {"memory_large_over_small": figures["memory_large_mb"] / figures["memory_small_mb"]}
    for name in names:
        for threads in THREADS:
            mine = figures[f"{name}_ours_{threads}"]
            found[f"{name}_over_bare_{threads}"] = mine / figures[f"{name}_bare_{threads}"]
        found[f"{name}_2_threads_over_1"] = mine / figures[f"{name}_ours_1"]
        found[f"{name}_bare_2_threads_over_1"] = figures[f"{name}_bare_2"] / figures[f"{name}_bare_1"]
        if "pyod_vae" in figures:
            found[f"{name}_over_ray_data"] = mine / figures[f"{name}_ray_data"]
            found[f"{name}_over_pyod_vae"] = mine / figures["pyod_vae"]
    return found


def repeated_files(folder: Path, real: pa.Table, num_rows: int, num_files: int) -> pa.Table:
    """Write `num_rows` rows in files of equal size, and return those of one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    part = num_rows // num_files
    index = np.arange(min(part, ROWS_OF_GROUP)) % real.num_rows
    table = real.take(index)
    for number in range(num_files):
        with pq.ParquetWriter(folder / f"{number:02}.parquet", table.schema) as writer:
            for first in range(0, part, ROWS_OF_GROUP):
                writer.write_table(table.slice(0, min(ROWS_OF_GROUP, part - first)))
    return table


def model_of(run_folder: Path, data: Path, settings: list[str], *, quick: bool) -> Path:
    """A model trained for a moment: how good it is does not change how fast it is."""
    steps = ["--set", f"train.max_steps={10 if quick else 200}"]
    trained(run_folder, data / "adbench" / "magic.gamma.parquet", "--label", "anomaly", *steps, *settings)
    return run_folder / "model.vae"


def ours(vae: parvae.VAE, verb: str, folder: Path, num_rows: int, threads: int) -> float:
    """Rows a second, files in and files out."""
    output = folder / "ours"
    shutil.rmtree(output, ignore_errors=True)
    stamp = {"parvae.verb": verb, "parvae.settings": "", "parvae.model_id": vae.model_id}
    tasks = plan(find_files([str(folder / "data")]), output)
    started_s = time.perf_counter()
    outcomes = list(run(tasks, TRANSFORMS[verb](vae), stamp=stamp, output=output, threads=threads))
    elapsed_s = time.perf_counter() - started_s
    assert sum(outcome.num_rows for outcome in outcomes) == num_rows
    return num_rows / elapsed_s


def bare(vae: parvae.VAE, model: Path, verb: str, rows: pa.Table, threads: int) -> Callable[[], float]:
    """Rows a second of one session on arrays in memory, called from as many threads."""
    session = open_session(read_bundle(model).members[f"{verb}.onnx"], threads=1)
    inputs, num_rows = read_inputs(vae.schema, rows)
    feeds = {
        size: [{name: a[first : first + size] for name, a in inputs.items()} for first in range(0, num_rows, size)]
        for size in BATCHES
    }

    def rate(size: int) -> float:
        with ThreadPoolExecutor(threads) as workers:
            started_s = time.perf_counter()
            for _ in workers.map(partial(session.run, None), feeds[size] * threads):
                pass
            return threads * num_rows / (time.perf_counter() - started_s)

    best = max(BATCHES, key=rate)
    return partial(rate, best)


@cache
def loaded(model: Path) -> parvae.VAE:
    """One model in each worker."""
    return parvae.load(model)


def start_ray() -> None:
    """A cluster of two CPUs in this machine; its workers have one thread each."""
    import ray

    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False


def ray_data(model: Path, verb: str, folder: Path, num_rows: int) -> float:
    """Rows a second of Ray Data around the same graph."""
    import ray

    output = folder / "ray"
    shutil.rmtree(output, ignore_errors=True)

    def work(table: pa.Table) -> pa.Table:
        import scoring  # this file, as a module of the worker, where what is cached stays

        vae = scoring.loaded(model)
        inputs, _ = read_inputs(vae.schema, table)
        found = vae._sessions.run(verb, inputs)
        if verb == "score":
            columns = {"score": pa.array(found["score"]), "p_value": pa.array(vae._calibration.p_value(found["score"]))}
        else:
            columns = {"code": pa.FixedSizeListArray.from_arrays(pa.array(found["mean"].reshape(-1)), vae.latent_size)}
        return pa.table({"anomaly": table["anomaly"], **columns})

    started_s = time.perf_counter()
    rows = ray.data.read_parquet(str(folder / "data"), override_num_blocks=NUM_FILES)
    rows.map_batches(work, batch_size=1_024, batch_format="pyarrow", zero_copy_batch=True).write_parquet(str(output))
    elapsed_s = time.perf_counter() - started_s
    assert sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet")) == num_rows
    return num_rows / elapsed_s


def pyod_vae(rows: pa.Table, *, quick: bool) -> Callable[[], float]:
    """Rows a second of PyOD's VAE on the same columns, standardised, as one array."""
    import torch
    from pyod.models.vae import VAE as PYOD_VAE

    torch.set_num_threads(max(THREADS))
    matrix = np.column_stack([rows[name].to_numpy() for name in rows.column_names if name != "anomaly"])
    matrix = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    detector = PYOD_VAE(epoch_num=1, random_state=0, verbose=0)
    detector.fit(matrix[:2_000])
    matrix = matrix[: 256 if quick else 32_768]

    def rate() -> float:
        started_s = time.perf_counter()
        detector.decision_function(matrix)
        return len(matrix) / (time.perf_counter() - started_s)

    return rate


def peak_mb(folder: Path, real: pa.Table, num_rows: int, model: Path) -> float:
    """Peak resident memory of a process that scores one file of `num_rows` rows with two threads, in MiB."""
    shutil.rmtree(folder / "memory", ignore_errors=True)
    repeated_files(folder / "memory", real, num_rows, 1)
    # Linux counts what the parent held before the program was replaced into ru_maxrss, but not into VmHWM (KiB).
    script = (
        "from parvae.__main__ import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    arguments = ["score", model, folder / "memory", "-o", folder / "memory-out", "--threads", "2", "--alpha", "0.05"]
    shutil.rmtree(folder / "memory-out", ignore_errors=True)
    command: list[Any] = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1]) / 2**10


if __name__ == "__main__":
    main()
