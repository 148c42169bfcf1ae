"""Is the column that was tampered with the first to be blamed? On UCI Adult; benchmarks/anomaly.py does it on ADBench.

    python benchmarks/blame.py [--data DIR]

Each test row gets, in one column drawn at random, the value of another row far away: of 20 rows drawn at random, the
one whose number is the furthest, or one whose category differs. The figures are shares of rows in which that column has
the highest `Scores.blame`, with the nats of every column given the others, and with contributions to the ELBO.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import finish, parser
from numpy.typing import NDArray

import parvae
from parvae_export.export import export
from parvae_pipeline.config import RunSettings
from parvae_pipeline.train import train

MAX_ROWS, NUM_DONORS = 2_000, 20
SETTINGS = {"model": {"denoising": True, "width": 128}, "train": {"max_steps": 1_500, "threads": 1, "seed": 0}}


def main() -> None:
    """Train on adult/train, tamper with adult/test."""
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    settings = {**SETTINGS, "train": {**SETTINGS["train"], **({"max_steps": 30} if options.quick else {})}}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(options.data / "adult" / "train.parquet")]
        run = train(RunSettings.from_mapping({**settings, "data": {"paths": paths}}), Path(folder))
        vae = parvae.load(export(run.checkpoint_path).path)
    rows = pq.read_table(options.data / "adult" / "test.parquet")
    conditional, contributions = blamed_first(vae, rows, seed=0)
    finish(
        {"adult_blamed_first": conditional, "adult_blamed_first_by_contributions": contributions}, as_json=options.json
    )


def blamed_first(vae: parvae.VAE, rows: pa.Table, *, seed: int) -> tuple[float, float]:
    """Shares of tampered rows whose column at fault is blamed first: conditional nats, contributions."""
    rng = np.random.default_rng(seed)
    rows = rows.take(rng.permutation(rows.num_rows)[:MAX_ROWS]).combine_chunks()
    names = [column.name for column in vae.schema.modelled]
    which = rng.integers(len(names), size=rows.num_rows)
    changed = np.zeros(rows.num_rows, bool)
    for index, name in enumerate(names):
        donors = _donors(rows[name], rng)
        values = rows[name].to_pylist()
        chosen = which == index
        swapped = [values[donors[row]] if chosen[row] else value for row, value in enumerate(values)]
        changed |= chosen & np.array([new != old for new, old in zip(swapped, values, strict=True)])
        rows = rows.set_column(
            rows.column_names.index(name), rows.schema.field(name), pa.array(swapped, rows[name].type)
        )
    scores = vae.score(rows)
    shares = [np.mean((scores.blame(conditional=kind).argmax(axis=1) == which)[changed]) for kind in (True, False)]
    return float(shares[0]), float(shares[1])


def _donors(column: pa.ChunkedArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) for every row the number of another whose value is far from its own."""
    candidates = rng.integers(len(column), size=(len(column), NUM_DONORS))
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values = np.nan_to_num(column.to_numpy().astype(np.float64))
        distances = np.abs(values[candidates] - values[:, None])
    else:
        _, codes = np.unique(np.array([str(value) for value in column.to_pylist()]), return_inverse=True)
        distances = (codes[candidates] != codes[:, None]).astype(np.float64)
    return candidates[np.arange(len(column)), distances.argmax(axis=1)]


if __name__ == "__main__":
    main()
