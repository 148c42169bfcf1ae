"""Is the column that was tampered with the first to be blamed? On UCI Adult; benchmarks/anomaly.py does it on ADBench.

    python benchmarks/blame.py [--sets stamps,vertebral]

Each test row gets, in one column drawn at random, the value of another row far away: of 20 rows drawn at random, the
one whose number is the furthest, or one whose category differs. The figures are shares of rows in which that column has
the highest `Scores.blame`, with the nats of every column given the others, and with contributions to the ELBO.

Beside them stands gradient boosting (`blame_peer.py`): one classifier a column, given all others. With Bayes' rule, and
told how the rows were tampered with, it names as many as its conditionals allow: about what can be asked on these data.
--sets adds what it reaches on sets of ADBench.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from adbench import LABEL, split
from blame_peer import boosted_blame
from harness import finish, parser
from numpy.typing import NDArray

import parvae
from parvae_export.export import export
from parvae_pipeline.config import RunSettings
from parvae_pipeline.train import train

MAX_ROWS, NUM_DONORS = 2_000, 20
SETTINGS = {"model": {"denoising": True, "width": 128}, "train": {"max_steps": 1_500, "threads": 1, "seed": 0}}


class Tampered(NamedTuple):
    """Rows with one value each taken from another row."""

    rows: pa.Table
    which: NDArray[np.int64]
    """(n,) the column."""
    changed: NDArray[np.bool_]
    """(n,) whether the value is another one now."""

    def named_first(self, blame: NDArray[np.floating]) -> float:
        """Share of the changed rows whose column has the highest `blame` (n, columns)."""
        return float(np.mean((blame.argmax(axis=1) == self.which)[self.changed]))


def main() -> None:
    """Train on adult/train, tamper with adult/test."""
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--sets", type=lambda text: text.split(","), default=[], help="of ADBench, for boosting alone"
    )
    options = arguments.parse_args()
    torch.set_num_threads(1)
    settings = {**SETTINGS, "train": {**SETTINGS["train"], **({"max_steps": 30} if options.quick else {})}}
    training = options.data / "adult" / "train.parquet"
    with tempfile.TemporaryDirectory() as folder:
        run = train(RunSettings.from_mapping({**settings, "data": {"paths": [str(training)]}}), Path(folder))
        vae = parvae.load(export(run.checkpoint_path).path)
    rows = pq.read_table(options.data / "adult" / "test.parquet")
    conditional, contributions = blamed_first(vae, rows, seed=0)
    figures = {"adult_blamed_first": conditional, "adult_blamed_first_by_contributions": contributions}
    if not options.ours_only:
        figures |= peer_figures("adult", pq.read_table(training), rows, quick=options.quick)
    for name in options.sets:
        table = pq.read_table(options.data / "adbench" / f"{name}.parquet")
        normal, test = (
            part.filter(pc.equal(part[LABEL], 0)).drop_columns([LABEL]) for part in split(table, "clean", 0)
        )
        figures |= peer_figures(name, normal, test, quick=options.quick)
    finish(figures, as_json=options.json)


def blamed_first(vae: parvae.VAE, rows: pa.Table, *, seed: int) -> tuple[float, float]:
    """Shares of tampered rows whose column at fault is blamed first: conditional nats, contributions."""
    tampered = tamper(rows, [column.name for column in vae.schema.modelled], seed=seed)
    scores = vae.score(tampered.rows)
    return tampered.named_first(scores.blame()), tampered.named_first(scores.blame(conditional=False))


def peer_figures(name: str, training: pa.Table, rows: pa.Table, *, quick: bool) -> Mapping[str, float]:
    """The same shares by gradient boosting."""
    tampered = tamper(rows, training.column_names, seed=0)
    blames = boosted_blame(
        training.slice(0, 500 if quick else None), tampered.rows, num_donors=NUM_DONORS, max_iter=3 if quick else 60
    )
    return {f"{name}_boosting_{rule}": tampered.named_first(blame) for rule, blame in blames.items()}


def tamper(rows: pa.Table, names: list[str], *, seed: int) -> Tampered:
    """At most 2,000 of the rows, each with the value of another in one of the columns."""
    rng = np.random.default_rng(seed)
    rows = rows.take(rng.permutation(rows.num_rows)[:MAX_ROWS]).combine_chunks()
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
    return Tampered(rows, which, changed)


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
