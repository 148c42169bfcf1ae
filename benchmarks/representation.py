"""Codes in place of vectors: who their neighbours are, what they restore, and how many bytes they take.

    python benchmarks/representation.py [--budget 5m]

MNIST pixels stand for embeddings: 784 float32 a row. A model of the 60,000 training rows encodes the 10,000 test rows;
peers are as many principal components of the training rows (float32, and int8 with one scale) and the vectors
themselves in int8. `recall_10` is the share of the ten nearest rows (Euclidean, in the 784 numbers) that are among the
ten nearest in the codes, over 1,000 queries; `same_label` the share of those ten that show the digit of the query;
`cosine` the mean cosine between rows and what codes restore.

`bytes` is what a row takes after entropy coding: ours by `parvae.compress`, tables and all, but not the model. The peer
is principal components, all of them, under one uniform quantiser and an ideal order-0 coder for each (no tables), its
step chosen to give as many bytes; `rmse` compares what both restore, in shades of 255.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import finish, parser, trained
from numpy.typing import NDArray

import parvae

NUM_NEIGHBOURS = 10
NUM_QUERIES = 1_000
Vectors = NDArray[np.float32]


def main() -> None:
    """Train, encode, compare."""
    options = parser(__doc__ or "")
    options.add_argument("--budget", default="5m", help="wall time of training")
    chosen = options.parse_args()
    train, _ = _vectors(chosen.data / "mnist", "train-*.parquet", 500 if chosen.quick else None)
    test, labels = _vectors(chosen.data / "mnist", "test-*.parquet", 200 if chosen.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        rows, run = Path(folder) / "train.parquet", Path(folder) / "run"
        pq.write_table(_table(train), rows)
        budget = "5s" if chosen.quick else chosen.budget
        seconds = trained(run, rows, "--budget", budget, "--columns", "vector:vector")
        vae = parvae.load(run / "model.vae")
    means = vae.encode(_table(test))
    codes = vae.code_grid.quantised(means)
    restored = np.asarray(vae.decode(vae.code_grid.restored(codes))["vector"], np.float32).reshape(test.shape)
    compressed = parvae.compress({f"code_{place}": column for place, column in enumerate(codes.T)})
    figures = {
        "train_cpu_s": seconds,
        "latent": float(vae.latent_size),
        "ours_bytes": len(compressed) / len(test),
        "ours_rmse": _rmse(restored, test),
        "ours_cosine": _cosine(restored, test),
    }
    truth = _neighbours(test)
    views = {"ours_float32": means / vae.code_grid.steps, "ours_int8": codes}
    if not chosen.ours_only:
        components = _Components.of(train)
        scores = components.scores(test)
        few = scores[:, : vae.latent_size]
        views |= {
            "pca_float32": few,
            "pca_int8": np.rint(few * (127 / np.abs(few).max())),
            "vectors_int8": np.rint(test * (127 / np.abs(test).max())),
        }
        figures["vectors_same_label"] = _same_label(truth, labels)
        figures["pca_cosine"] = _cosine(components.restored(few), test)
        figures["pca_rmse"] = _rmse(components.restored(few), test)
        step = _step_for(scores, 8 * figures["ours_bytes"])
        figures["quantised_pca_bytes"] = _order_0_bits(scores, step) / 8
        figures["quantised_pca_rmse"] = _rmse(components.restored(step * np.rint(scores / step)), test)
    for name, view in views.items():
        found = _neighbours(view.astype(np.float32))
        overlap = [len(np.intersect1d(ours, real)) for ours, real in zip(found, truth, strict=True)]
        figures[f"{name}_recall_{NUM_NEIGHBOURS}"] = float(np.mean(overlap)) / NUM_NEIGHBOURS
        figures[f"{name}_same_label"] = _same_label(found, labels)
    finish(figures, as_json=chosen.json)


def _vectors(folder: Path, pattern: str, num_rows: int | None) -> tuple[Vectors, NDArray[np.integer]]:
    """(n, 784) shades from 0 to 1, and (n,) labels."""
    table = pa.concat_tables(pq.read_table(path, columns=["image", "label"]) for path in sorted(folder.glob(pattern)))
    table = table.slice(0, num_rows).combine_chunks()
    pixels = np.asarray(table["image"].chunk(0).flatten()).reshape(table.num_rows, -1)
    return pixels.astype(np.float32) / 255, np.asarray(table["label"])


def _table(vectors: Vectors) -> pa.Table:
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])})


@dataclass(frozen=True, kw_only=True)
class _Components:
    """Principal components of training rows."""

    mean: Vectors
    axes: Vectors
    """(784, 784) a column each, by falling variance."""

    @classmethod
    def of(cls, rows: Vectors) -> _Components:
        mean = rows.mean(axis=0)
        _, axes = np.linalg.eigh(np.cov(rows - mean, rowvar=False))
        return cls(mean=mean, axes=np.ascontiguousarray(axes[:, ::-1]).astype(np.float32))

    def scores(self, rows: Vectors) -> Vectors:
        return (rows - self.mean) @ self.axes

    def restored(self, scores: Vectors) -> Vectors:
        return np.clip(scores @ self.axes[:, : scores.shape[1]].T + self.mean, 0, 1)


def _order_0_bits(scores: Vectors, step: float) -> float:
    """Bits a row of every component in an ideal coder of its own."""
    total = 0.0
    for column in np.rint(scores / step).astype(np.int64).T:
        counts = np.unique(column, return_counts=True)[1]
        total += float(np.sum(counts * np.log2(len(column) / counts)))
    return total / len(scores)


def _step_for(scores: Vectors, num_bits: float) -> float:
    """The step that takes about so many bits a row, by bisection."""
    low, high = 1e-3, 1e2
    for _ in range(24):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if _order_0_bits(scores, middle) > num_bits else (low, middle)
    return high


def _neighbours(rows: Vectors) -> NDArray[np.int64]:
    """(queries, 10) the nearest other rows of the first rows."""
    queries = rows[:NUM_QUERIES]
    squares = np.sum(rows * rows, axis=1)
    distances = squares - 2 * queries @ rows.T
    distances[np.arange(len(queries)), np.arange(len(queries))] = np.inf
    return np.argpartition(distances, NUM_NEIGHBOURS, axis=1)[:, :NUM_NEIGHBOURS]


def _same_label(neighbours: NDArray[np.int64], labels: NDArray[np.integer]) -> float:
    return float(np.mean(labels[neighbours] == labels[: len(neighbours), None]))


def _rmse(found: Vectors, wanted: Vectors) -> float:
    """In shades of 255."""
    return 255 * float(np.sqrt(np.mean((found - wanted) ** 2)))


def _cosine(found: Vectors, wanted: Vectors) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(np.mean(np.sum(found * wanted, axis=1) / np.maximum(norms, 1e-12)))


if __name__ == "__main__":
    main()
