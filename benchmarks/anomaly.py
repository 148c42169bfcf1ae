"""Anomaly detection on the ADBench sets of ../shared/data/adbench: parvae beside PyOD, one configuration for all sets.

    python benchmarks/anomaly.py [--protocol clean] [--sets glass,wine] [--seeds 0,1,2] [--peers knn] [--cache FILE]

The protocols "clean" and "contaminated" are those of adbench.py: training on normal rows, or on anomalies among them.
Peers get inputs standardised with training statistics; parvae trains on Parquet, exports, and scores by the bundle.
Figures are means over sets of the mean over seeds. With --int8 the same models are also exported with their hidden
layers in 8 bits (`parvae_int8`, with rows/s beside those of `parvae`). With --cache, results are kept line by line in a
file, and a run that was stopped goes on. One thread for everyone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from adbench import LABEL, MIN_BLAME_COLUMNS, PROTOCOLS, split
from blame import blamed_first
from harness import finish, parser
from numpy.typing import NDArray
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.pca import PCA
from pyod.models.vae import VAE as PYOD_VAE
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

import parvae
from parvae_export.export import export
from parvae_pipeline.config import RunSettings
from parvae_pipeline.strangeness import MODEL_PARTS
from parvae_pipeline.train import train

ALPHAS = (0.05, 0.01)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"model": {"denoising": True, "width": 128}, "train": {"max_steps": 4_000, "threads": 1}},
    "contaminated": {"model": {"denoising": True, "width": 128}, "train": {"contaminated": True, "threads": 1}},
}
Matrix = NDArray[np.float64]
Record = dict[str, Any]

PEERS: Mapping[str, Callable[[int], Any]] = {
    "knn": lambda seed: KNN(n_neighbors=5),
    "lof": lambda seed: LOF(),
    "iforest": lambda seed: IForest(random_state=seed),
    "ecod": lambda seed: ECOD(),
    "pca": lambda seed: PCA(random_state=seed),
    "pyod_vae": lambda seed: PYOD_VAE(random_state=seed, verbose=0),
}
ONE_SEED_PEERS = ("pyod_vae",)
"""Run with the first seed only: it takes as long as all the others together."""


def main() -> None:
    """Print one figure for each contender and protocol."""
    options = _options()
    folder: Path = options.data / "adbench"
    names = options.sets or sorted(path.stem for path in folder.glob("*.parquet"))
    peers = [] if options.ours_only else options.peers
    if options.quick:
        names, peers, options.seeds = ["glass", "wine"], peers[:1], [0]
    torch.set_num_threads(1)
    records = _Records(options.cache)
    for protocol in options.protocols:
        for seed in options.seeds:
            for name in names:
                table = pq.read_table(folder / f"{name}.parquet")
                for contender in ["parvae", *peers]:
                    if contender in ONE_SEED_PEERS and seed != options.seeds[0]:
                        continue
                    settings = _settings(protocol, seed, quick=options.quick) if contender == "parvae" else {}
                    with_int8 = options.int8 and contender == "parvae"
                    named = f"{contender}, int8" if with_int8 else contender
                    key = [protocol, seed, name, named, json.dumps(settings, sort_keys=True)]
                    compute = partial(_run, table, protocol, seed, contender, settings, with_int8=with_int8)
                    for record in records.get(key, compute):
                        print(name, seed, protocol, record["contender"], f"AUROC {record['auroc']:.4f}", flush=True)
    finish(_figures(records.used), as_json=options.json)


def _options() -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return text.split(",")

    result = parser(__doc__ or "")
    result.add_argument("--sets", type=listed, help="names of sets, joined by commas  [default: all]")
    result.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    result.add_argument("--protocol", dest="protocols", action="append", choices=PROTOCOLS, help="[default: clean]")
    result.add_argument("--peers", type=listed, default=list(PEERS), help=f"of {', '.join(PEERS)}  [default: all]")
    result.add_argument("--int8", action="store_true", help="export the models in 8 bits too")
    result.add_argument("--cache", type=Path, help="file of results that are not computed again")
    options = result.parse_args()
    options.protocols = options.protocols or ["clean"]
    return options


class _Records:
    """Results by key, appended to a file as they come."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._known: dict[str, list[Record]] = {
            json.dumps(entry["key"]): entry["records"] for entry in map(json.loads, lines)
        }
        self.used: list[Record] = []

    def get(self, key: list[Any], compute: Callable[[], list[Record]]) -> list[Record]:
        text = json.dumps(key)
        if text not in self._known:
            named = {"protocol": key[0], "seed": key[1], "set": key[2]}
            self._known[text] = [{**named, **record} for record in compute()]
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps({"key": key, "records": self._known[text]}) + "\n")
        self.used += self._known[text]
        return self._known[text]


def _settings(protocol: str, seed: int, *, quick: bool) -> dict[str, Any]:
    tables = {name: dict(keys) for name, keys in SETTINGS[protocol].items()}
    tables["train"] |= {"seed": seed, **({"max_steps": 30} if quick else {})}
    return tables


def _run(
    table: pa.Table, protocol: str, seed: int, contender: str, settings: Mapping[str, Any], *, with_int8: bool
) -> list[Record]:
    training, test = split(table, protocol, seed)
    labels = test[LABEL].to_numpy()
    training, test = training.drop_columns([LABEL]), test.drop_columns([LABEL])
    if contender != "parvae":
        return [_measured(contender, labels, *_peer_scores(PEERS[contender](seed), training, test))]
    return _parvae(training, test, labels, settings, with_int8=with_int8)


def _peer_scores(model: Any, training: pa.Table, test: pa.Table) -> tuple[Matrix, float]:
    """Scores of the test rows, and rows scored a second."""
    rows, others = _matrix(training), _matrix(test)
    mean, stddev = rows.mean(axis=0), rows.std(axis=0)
    stddev[stddev == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' own affairs
        model.fit((rows - mean) / stddev)
        started_s = time.perf_counter()
        scores = model.decision_function((others - mean) / stddev)
    return scores, len(others) / (time.perf_counter() - started_s)


def _matrix(table: pa.Table) -> Matrix:
    return np.stack([column.to_numpy().astype(np.float64) for column in table.columns], axis=1)


def _parvae(
    training: pa.Table, test: pa.Table, labels: NDArray[Any], settings: Mapping[str, Any], *, with_int8: bool
) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(training, path)
        numbers = dict.fromkeys(training.column_names, "numeric")  # as they are to the peers
        document = {**settings, "data": {"paths": [str(path)], "columns": numbers}}
        run = train(RunSettings.from_mapping(document), Path(folder) / "run")
        vae = parvae.load(export(run.checkpoint_path).path)
        int8 = parvae.load(export(run.checkpoint_path, int8=True).path) if with_int8 else None
    scores, rows_per_s = _scored(vae, test)
    model_only = np.mean([scores.strangeness_parts[name] for name in MODEL_PARTS], axis=0)
    others = {"parvae_model_only": model_only, "parvae_nats": scores.nats, **scores.strangeness_parts}
    record = _measured("parvae", labels, scores.score, rows_per_s)
    normal = scores.p_value[labels == 0]
    record |= {"num_calibration": round(1 / vae.smallest_alpha) - 1, "num_normal": len(normal)}
    record["flagged"] = [int((normal <= alpha).sum()) for alpha in ALPHAS]
    if test.num_columns >= MIN_BLAME_COLUMNS:
        named = blamed_first(vae, test.filter(pa.array(labels == 0)), seed=0)
        record |= {"blamed_first": named[0], "blamed_first_by_contributions": named[1]}
    results = [record, *(_measured(name, labels, values, rows_per_s) for name, values in others.items())]
    if int8 is not None:
        scores, rows_per_s = _scored(int8, test)
        results.append(_measured("parvae_int8", labels, scores.score, rows_per_s))
    return results


def _scored(vae: parvae.VAE, rows: pa.Table) -> tuple[parvae.Scores, float]:
    """The scores of rows, and rows scored a second; the first call opens the session."""
    vae.score(rows.slice(0, 1))
    started_s = time.perf_counter()
    scores = vae.score(rows)
    return scores, rows.num_rows / (time.perf_counter() - started_s)


def _measured(contender: str, labels: NDArray[Any], scores: NDArray[Any], rows_per_s: float) -> Record:
    finite = np.nan_to_num(scores, posinf=np.finfo(np.float32).max)
    return {
        "contender": contender,
        "auroc": float(roc_auc_score(labels, finite)),
        "average_precision": float(average_precision_score(labels, finite)),
        "rows_per_s": rows_per_s,
    }


def _figures(records: Sequence[Record]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for protocol, contender in dict.fromkeys((record["protocol"], record["contender"]) for record in records):
        own = [record for record in records if (record["protocol"], record["contender"]) == (protocol, contender)]
        name = f"{contender}_{protocol}"
        for measure in ("auroc", "average_precision"):
            figures[f"{name}_{measure}"] = _mean_over_sets(own, measure)
        if contender in ("parvae", "parvae_int8", *PEERS):
            figures[f"{name}_rows_per_s"] = float(np.median([record["rows_per_s"] for record in own]))
    for measure in ("blamed_first", "blamed_first_by_contributions"):
        able = [record for record in records if measure in record and record["protocol"] == "clean"]
        if able:
            figures[measure] = _mean_over_sets(able, measure)
    figures["sets"] = len({record["set"] for record in records})
    return figures | _validity([record for record in records if "flagged" in record and record["protocol"] == "clean"])


def _mean_over_sets(records: Sequence[Record], measure: str) -> float:
    by_set: dict[str, list[float]] = {}
    for record in records:
        by_set.setdefault(record["set"], []).append(record[measure])
    return float(np.mean([np.mean(values) for values in by_set.values()]))


def _validity(records: Sequence[Record]) -> dict[str, float]:
    """Of normal test rows: the share with a p-value of at most alpha, and how many runs keep to their 99 % band.

    A p-value of k / (n + 1) or less has probability Beta(k, n + 1 - k) given n calibration rows, so the count over m
    test rows is beta-binomial.
    """
    figures: dict[str, float] = {}
    for index, alpha in enumerate(ALPHAS):
        able = [record for record in records if 1 / (1 + record["num_calibration"]) <= alpha]
        if not able:
            continue
        within = []
        for record in able:
            n, rank = record["num_calibration"], int(alpha * (1 + record["num_calibration"]))
            low, high = stats.betabinom.interval(0.99, record["num_normal"], rank, n + 1 - rank)
            within.append(low <= record["flagged"][index] <= high)
        shares = [record["flagged"][index] / record["num_normal"] for record in able]
        figures[f"share_of_normal_rows_with_p_up_to_{alpha:g}"] = float(np.mean(shares))
        figures[f"runs_within_their_band_at_{alpha:g}"] = float(np.mean(within))
    return figures


if __name__ == "__main__":
    main()
