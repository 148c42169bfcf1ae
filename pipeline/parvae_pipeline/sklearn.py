"""`VAEDetector`: training and scoring behind scikit-learn's interface, with PyOD's attributes beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from parvae.arrow import as_table
from parvae.errors import MissingExtraError, SettingError
from parvae.rows import Arrays
from parvae.schema import Role
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.config import RunSettings, merged
from parvae_pipeline.reader import encode, select
from parvae_pipeline.strangeness import Strangeness, can_fit
from parvae_pipeline.train import train

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    raise MissingExtraError("VAEDetector needs scikit-learn 1.6 or newer: pip install 'parvae[sklearn]'") from missing

DEFAULTS: Mapping[str, Any] = {"model.denoising": True, "model.width": 128, "train.max_steps": 1_500}
SCORE_ROWS = 1_024
"""Rows at a time; bounds memory."""
INDEX_PREFIX = "__index_level_"
"""What Arrow calls the index of a pandas dataframe."""


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn states no types
    """Outlier detection by a denoising variational autoencoder.

    X is an array (n, d) of numbers, in which NaN is a missing value, or a dataframe of numbers, strings and booleans.
    As everywhere in scikit-learn, higher `score_samples` and `decision_function` are more normal, and `predict` gives
    -1 for outliers. The attributes of PyOD are those of PyOD: higher is stranger, and 1 is an outlier. As with
    LocalOutlierFactor, `fit_predict` and `labels_` judge the training rows, each by the others; the other methods are
    for fresh rows, and see a training row at no distance from itself.

    contamination   share of the training rows that lie beyond the threshold, in (0, 0.5]
    settings        settings by name, as `vae train --set` takes them, for example {"model.width": 256}
    random_state    the seed
    run_folder      where the run is kept, so that `vae export` can make a bundle of it; None keeps nothing

    decision_scores_   (n,) strangeness of the training rows, each judged by the others
    threshold_         that of `contamination` of them is higher; `offset_` is its negative
    labels_            (n,) 1 for the training rows beyond it, else 0
    n_features_in_, feature_names_in_   as in scikit-learn
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        settings: Mapping[str, Any] | None = None,
        random_state: int = 0,
        run_folder: str | Path | None = None,
    ) -> None:
        self.contamination = contamination
        self.settings = settings
        self.random_state = random_state
        self.run_folder = run_folder

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of `X`; `y` is ignored.

        Raises SettingError when a parameter is out of range, DataError when the rows cannot be modelled; both are
        ValueErrors.
        """
        if not 0 < self.contamination <= 0.5:
            raise SettingError(f"contamination is {self.contamination!r}; it must lie in (0, 0.5]")
        table = self._table(X, reset=True)
        with tempfile.TemporaryDirectory(prefix="parvae-") as folder:
            rows_path = Path(folder) / "rows.parquet"
            pq.write_table(table, rows_path)
            run_folder = Path(folder) / "run" if self.run_folder is None else Path(self.run_folder)
            settings = self._run_settings(rows_path, are_numbers=not _is_frame(X))
            checkpoint = read_checkpoint(train(settings, run_folder).checkpoint_path)
        self.model_ = checkpoint.model.eval()
        self.strangeness_ = None
        if can_fit(self.model_):
            typical = {
                name: torch.from_numpy(array) for name, array in (checkpoint.coreset or self._raw(table)).items()
            }
            self.strangeness_ = Strangeness(
                self.model_,
                typical,
                keep_rows=bool(checkpoint.coreset),
                contaminated=checkpoint.settings.train.contaminated,
            ).eval()
        self.decision_scores_ = self._scores(self._raw(table), are_training_rows=True)
        self.threshold_ = float(np.quantile(self.decision_scores_, 1.0 - self.contamination))
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """(n,) -1 for the outliers among the training rows, each judged by the others, and 1 for the rest."""
        return np.where(self.fit(X).labels_ == 1, -1, 1)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """(n,) minus the strangeness of the rows: higher is more normal."""
        check_is_fitted(self)
        return -self._scores(self._raw(self._table(X, reset=False)))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """(n,) `score_samples` less `offset_`: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """(n,) -1 for outliers, 1 for others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    def _table(self, X: Any, *, reset: bool) -> pa.Table:
        if _is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            table = as_table(X)
            return table.select([name for name in table.column_names if not name.startswith(INDEX_PREFIX)])
        matrix = validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2 if reset else 1
        )
        return pa.table({f"x{index}": matrix[:, index] for index in range(matrix.shape[1])})

    def _run_settings(self, rows_path: Path, *, are_numbers: bool) -> RunSettings:
        options: dict[str, Any] = {"data.paths": [str(rows_path)], "train.seed": int(self.random_state)}
        if are_numbers:
            # Numbers are numbers, also where a column looks like a key.
            options["data.columns"] = {f"x{index}": Role.NUMERIC.value for index in range(self.n_features_in_)}
        return RunSettings.from_mapping(merged({}, {**DEFAULTS, **(self.settings or {}), **options}))

    def _raw(self, table: pa.Table) -> Arrays:
        return encode(self.model_.schema, table)

    @torch.no_grad()
    def _scores(self, raw: Arrays, *, are_training_rows: bool = False) -> NDArray[np.float64]:
        num_rows = len(next(iter(raw.values())))
        parts = [np.empty(0)]
        for first in range(0, num_rows, SCORE_ROWS):
            arrays = select(raw, slice(first, first + SCORE_ROWS))
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
            if self.strangeness_ is None:
                scores = self.model_.score_terms(batch).negative_elbo_nats
            else:
                scores, *_ = self.strangeness_(batch, are_training_rows=are_training_rows)
            parts.append(scores.double().numpy())
        return np.concatenate(parts)


def _is_frame(X: Any) -> bool:
    return hasattr(X, "__arrow_c_stream__") or hasattr(X, "iloc")  # older pandas speaks no Arrow
