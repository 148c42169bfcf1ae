"""Synthetic rows of UCI Adult: trained, exported and sampled by the commands, beside CTGAN's TVAE.

    python benchmarks/synthesis.py [--budget 5m] [--epochs 100] [--cures]

6,000 rows are drawn from each model and judged against the 6,000 test rows: SDMetrics column shapes and column pair
trends (1 is best), and the AUC on the test rows of a gradient-boosting classifier of `income` trained on the drawn
rows; `real_auc` trains it on the real ones. `lost_categories` counts the categories with at least 50 training rows
that are absent from 20,000 drawn rows. Nulls are the category "NA" for both. One thread.

`--cures` trains the same network twice more for the same time, without what cures a textbook VAE: `normal_prior_*` has
N(0, I) for a prior, `textbook_*` the squared error for numbers besides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from harness import finish, parser, trained, vae

NUM_ROWS = 6_000
NUM_ROWS_FOR_CATEGORIES = 20_000
MIN_CATEGORY_ROWS = 50
TARGET = "income"
CURES = {
    "normal_prior": ["--set", "model.prior=normal"],
    "textbook": ["--set", "model.prior=normal", "--set", "model.likelihood=mse"],
}
"""Options that take one cure away after the other."""


def main() -> None:
    """Train each contender and judge its rows."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--budget", default="5m", help="time for our training, on one thread")
    arguments.add_argument("--epochs", type=int, default=100, help="epochs of TVAE")
    arguments.add_argument("--cures", action="store_true", help="train without the cures of a textbook VAE too")
    arguments.add_argument("--run", type=Path, help="a run folder that is trained and exported already")
    options = arguments.parse_args()
    training, test = (_frame(options.data / "adult" / f"{name}.parquet") for name in ("train", "test"))
    figures = {"real_auc": _auc(training, test)}
    budget = "5s" if options.quick else options.budget
    data = options.data / "adult" / "train.parquet"
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in {"ours": [], **(CURES if options.cures else {})}.items():
            run = Path(folder) / name
            if name == "ours" and options.run is not None:
                run = options.run
            else:
                figures[f"{name}_s"] = trained(run, data, "--budget", budget, *settings)
            figures |= {f"{name}_{what}": value for what, value in _judged(_sampled(run), training, test).items()}
    if not options.ours_only:
        started_s = time.process_time()
        drawn = _tvae_rows(training.iloc[:2_000] if options.quick else training, options)
        figures["tvae_s"] = time.process_time() - started_s
        figures |= {f"tvae_{name}": value for name, value in _judged(drawn, training, test).items()}
    finish(figures, as_json=options.json)


def _frame(path: Path) -> pd.DataFrame:
    return _nulls_as_category(pq.read_table(path).to_pandas())


def _nulls_as_category(frame: pd.DataFrame) -> pd.DataFrame:
    text = frame.select_dtypes(exclude="number").columns
    return frame.assign(**{name: frame[name].astype(object).fillna("NA").astype(str) for name in text})


def _sampled(run: Path) -> pd.DataFrame:
    output = run / "samples.parquet"
    vae("sample", str(run / "model.vae"), "-n", str(NUM_ROWS_FOR_CATEGORIES), "-o", str(output))
    return _frame(output)


def _tvae_rows(training: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    from ctgan import TVAE

    text = training.select_dtypes(exclude="number").columns.tolist()
    model = TVAE(epochs=1 if options.quick else options.epochs, enable_gpu=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about modes that do not converge
        model.fit(training, text)
        rows: pd.DataFrame = model.sample(NUM_ROWS_FOR_CATEGORIES)
    return rows


def _judged(drawn: pd.DataFrame, training: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    from sdmetrics.reports.single_table import QualityReport

    rows = drawn.iloc[:NUM_ROWS].reset_index(drop=True)
    numeric = set(training.select_dtypes("number").columns)
    kinds = {name: {"sdtype": "numerical" if name in numeric else "categorical"} for name in training.columns}
    report = QualityReport()
    report.generate(test, rows, {"columns": kinds}, verbose=False)
    scores = report.get_properties().set_index("Property")["Score"]
    return {
        "column_shapes": float(scores["Column Shapes"]),
        "pair_trends": float(scores["Column Pair Trends"]),
        "auc": _auc(rows, test),
        "lost_categories": _lost_categories(drawn, training),
    }


def _lost_categories(drawn: pd.DataFrame, training: pd.DataFrame) -> int:
    lost = 0
    for name in training.select_dtypes(exclude="number").columns:
        counts = training[name].value_counts()
        lost += len(set(counts.index[counts >= MIN_CATEGORY_ROWS]) - set(drawn[name]))
    return lost


def _auc(training: pd.DataFrame, test: pd.DataFrame) -> float:
    """Area under the ROC curve on `test` of a gradient-boosting classifier trained on `training`."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    features = [name for name in training.columns if name != TARGET]
    text = [name for name in features if not pd.api.types.is_numeric_dtype(training[name])]
    levels = {name: pd.CategoricalDtype(sorted({*training[name], *test[name]})) for name in text}
    positive = sorted(test[TARGET].unique())[-1]
    classifier = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    classifier.fit(training[features].astype(levels), training[TARGET] == positive)
    probability = classifier.predict_proba(test[features].astype(levels))[:, 1]
    return float(roc_auc_score(np.asarray(test[TARGET] == positive), probability))


if __name__ == "__main__":
    main()
