"""Every benchmark runs, and prints its figures as one JSON object; what the figures say is not for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FIGURES = {
    "blame.py": {"adult_blamed_first", "adult_blamed_first_by_contributions", "adult_boosting_nats"},
    "compression.py": {"adult_bytes", "adult_ratio", "shuttle_ratio"},
    "representation.py": {"ours_bytes", "ours_int8_recall_10", "pca_int8_recall_10", "quantised_pca_rmse"},
    "startup.py": {"ours_s", "by_hand_s", "ratio"},
    "train_throughput.py": {"memory_rows_per_s", "memory_ratio", "stream_over_memory"},
    "anomaly.py": {"parvae_clean_auroc", "knn_clean_auroc", "sets"},
    "synthesis.py": {"real_auc", "ours_column_shapes", "ours_pair_trends", "ours_auc", "ours_lost_categories"},
    "plan_files.py": {"plan_100_s", "plan_100_mb", "kept_100_s", "stream_10x_over_1x"},
    "samples.py": {"mnist_bits_per_pixel", "mnist_ours_frechet", "mnist_pythae_mixture_frechet", "mnist_pca_rmse"},
    "scoring.py": {"score_128_over_bare_2", "score_128_over_ray_data", "score_128_over_pyod_vae", "memory_large_mb"},
    "every_set.py": {"sets", "failed", "skipped_share", "repairs", "collapsed", "red"},
    "gpu.py": {"num_cuda_devices"},
    "density.py": {"graph_nats", "torch_nats", "difference_nats", "ours_likelihood_nats", "pythae_vae_elbo_nats"},
}


def test_every_benchmark_is_listed_here() -> None:
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    assert scripts == set(FIGURES)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", FIGURES)
def test_a_smoke_run_prints_its_figures(script: str, shared_data: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--json", "--data", str(shared_data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) >= FIGURES[script]
    assert all(isinstance(value, (int, float)) for value in figures.values())
