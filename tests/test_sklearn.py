"""VAEDetector: scikit-learn's conventions, PyOD's attributes, and the numbers of the library behind them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")
pytest.importorskip("pandas")

import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import parvae
from parvae.errors import SettingError
from parvae_export.export import export
from parvae_pipeline.sklearn import VAEDetector

QUICK = {"model.width": 16, "model.depth": 1, "train.max_steps": 60, "train.threads": 1}
CHECKS = (
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_fit2d_1sample,
    estimator_checks.check_fit1d,
    estimator_checks.check_complex_data,
    estimator_checks.check_estimator_sparse_tag,
    estimator_checks.check_estimators_empty_data_messages,
    estimator_checks.check_estimators_unfitted,
    estimator_checks.check_n_features_in,
    estimator_checks.check_n_features_in_after_fitting,
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_estimators_pickle,
    estimator_checks.check_methods_sample_order_invariance,
    estimator_checks.check_dict_unchanged,
    estimator_checks.check_f_contiguous_array_estimator,
)


def rows(num_rows: int, *, seed: int) -> NDArray[np.float64]:
    """Four numbers on a plane."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, 2)) @ [[1.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, -1.0]] + 0.1 * rng.normal(
        size=(num_rows, 4)
    )


def detector(**parameters: Any) -> VAEDetector:
    return VAEDetector(**{"settings": QUICK, **parameters})


@pytest.fixture(scope="module")
def fitted() -> VAEDetector:
    return detector(settings={**QUICK, "train.max_steps": 400}).fit(rows(500, seed=0))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_conventions_of_scikit_learn(check: Any) -> None:
    check("VAEDetector", detector())


def test_outliers_are_negative_and_minus_one(fitted: VAEDetector) -> None:
    normal, broken = rows(200, seed=1), rows(200, seed=1)
    broken[:, 3] += 3.0
    labels = np.repeat([0, 1], 200)
    x = np.concatenate([normal, broken])
    decisions = fitted.decision_function(x)
    assert roc_auc_score(labels, -decisions) > 0.95
    np.testing.assert_array_equal(fitted.predict(x), np.where(decisions < 0, -1, 1))
    np.testing.assert_allclose(decisions, fitted.score_samples(x) - fitted.offset_)
    assert np.mean(fitted.predict(normal) == -1) < 0.25
    assert np.mean(fitted.predict(broken) == -1) > 0.9


def test_the_attributes_of_pyod_are_those_of_pyod(fitted: VAEDetector) -> None:
    assert fitted.decision_scores_.shape == (500,)
    assert fitted.labels_.sum() == 50
    np.testing.assert_array_equal(fitted.labels_ == 1, fitted.decision_scores_ > fitted.threshold_)
    np.testing.assert_array_equal(clone(fitted).fit_predict(rows(500, seed=0)), np.where(fitted.labels_, -1, 1))
    # A training row is judged by the others: it must not look less strange than a fresh one for being known.
    fresh = -fitted.score_samples(rows(500, seed=2))
    assert abs(np.median(fitted.decision_scores_) - np.median(fresh)) < 0.3


def test_rows_with_nulls_and_words_are_modelled() -> None:
    frame = pd.DataFrame(rows(300, seed=0), columns=list("abcd"))
    frame["side"] = np.where(frame["a"] > 0, "left", "right")
    frame.loc[::7, "b"] = np.nan
    shuffled = frame.sample(frac=1.0, random_state=0)  # its index is no column
    model = detector().fit(shuffled)
    assert list(model.feature_names_in_) == ["a", "b", "c", "d", "side"]
    assert np.isfinite(model.score_samples(frame)).all()
    odd = frame.assign(side="above")
    assert (model.score_samples(odd) < model.score_samples(frame)).mean() > 0.95


def test_the_same_seed_gives_the_same_scores_and_survives_pickling_and_cloning() -> None:
    x = rows(200, seed=0)
    first = detector(random_state=3).fit(x)
    for again in (pickle.loads(pickle.dumps(first)), clone(first).fit(x)):
        np.testing.assert_array_equal(again.score_samples(x), first.score_samples(x))
    assert (detector(random_state=4).fit(x).score_samples(x) != first.score_samples(x)).any()


def test_it_ends_a_pipeline() -> None:
    x = rows(200, seed=0)
    flags = make_pipeline(StandardScaler(), detector()).fit(x).predict(x)
    assert set(flags) <= {-1, 1}


def test_a_run_folder_is_exported_to_the_same_scores(tmp_path: Path) -> None:
    x = rows(200, seed=0)
    model = detector(run_folder=tmp_path / "run").fit(x)
    vae = parvae.load(export(tmp_path / "run" / "ckpt.pt").path)
    scores = vae.score({f"x{index}": x[:, index] for index in range(4)})
    np.testing.assert_allclose(scores.score, -model.score_samples(x), atol=1e-3)


def test_what_is_not_denoising_scores_by_nats() -> None:
    x = rows(200, seed=0)
    model = detector(settings={**QUICK, "model.denoising": False}).fit(x)
    assert model.strangeness_ is None
    assert np.isfinite(model.score_samples(x)).all()


@pytest.mark.parametrize("contamination", [0.0, -0.1, 0.6, 2.0])
def test_a_contamination_that_is_none_is_refused(contamination: float) -> None:
    with pytest.raises(SettingError, match=r"contamination is .*must lie in \(0, 0\.5\]"):
        detector(contamination=contamination).fit(rows(50, seed=0))


def test_scores_before_fitting_are_refused() -> None:
    with pytest.raises(NotFittedError):
        detector().score_samples(rows(5, seed=0))
