"""What scores mean: contributions, expectations, and p-values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed_rows import Rows

from parvae import VAE, Scores, SettingError
from parvae.scores import Calibration

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits.parquet"
MORE_THAN_ONE_CHUNK = 1_100


@pytest.mark.parametrize("name", ["city", "code"])
def test_an_unseen_category_raises_every_score(vae: VAE, rows: Rows, name: str) -> None:
    unseen: Any = "(no such place)" if name == "city" else 8
    changed = vae.score({**rows, name: np.full(40, unseen)})
    assert np.all(changed.nats > vae.score(rows).nats)


@pytest.mark.parametrize("name", ["income", "code", "member"])
def test_a_null_where_training_had_none_raises_every_score(vae: VAE, rows: Rows, name: str) -> None:
    assert vae.schema[name].num_nulls == 0
    changed = vae.score({**rows, name: np.full(40, None)})
    assert np.all(changed.nats > vae.score(rows).nats)


def test_infinite_numbers_score_like_nulls(vae: VAE, rows: Rows) -> None:
    nulls, infinite = (vae.score({**rows, "income": np.full(40, value)}).nats for value in (np.nan, np.inf))
    np.testing.assert_array_equal(nulls, infinite)
    assert np.all(np.isfinite(nulls))


@pytest.mark.parametrize("value", [1e300, -1e300, 3.4e38])
def test_the_most_extreme_numbers_have_a_finite_and_high_score(vae: VAE, rows: Rows, value: float) -> None:
    changed = vae.score({**rows, "income": np.full(40, value)}).nats
    assert np.all(np.isfinite(changed))
    assert np.all(changed > vae.score(rows).nats + 100)


def test_an_embedding_of_nan_scores_high(vae: VAE, rows: Rows) -> None:
    broken = np.full((40, 4), np.nan, np.float32)
    assert np.all(vae.score({**rows, "embedding": broken}).nats > vae.score(rows).nats + 100)


def test_keys_and_labels_do_not_change_the_score(vae: VAE, rows: Rows) -> None:
    without = {name: array for name, array in rows.items() if vae.schema[name].is_modelled}
    assert len(without) < len(rows)
    np.testing.assert_array_equal(vae.score(without).nats, vae.score(rows).nats)


# p-values


def scores_of(nats: Any, calibration: Any) -> Scores:
    values = np.array(nats, np.float32)
    table = Calibration(scores=np.sort(np.array(calibration, np.float32)), from_real_rows=True)
    return Scores(nats=values, contributions=values[:, None], parts=("x",), calibration=table, expect=lambda: None)


def test_the_p_value_is_the_conformal_formula(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    held_out = np.array(vae.manifest["calibration"]["scores"], np.float32)
    wanted = [(1 + int((held_out >= score).sum())) / (1 + len(held_out)) for score in scores.nats]
    np.testing.assert_allclose(scores.p_value, wanted, rtol=1e-15)


def test_p_values_count_ties_as_at_least_as_strange() -> None:
    scores = scores_of([0.5, 1.0, 2.0, 2.5, 3.0, np.inf, np.nan], [1, 2, 2, 3])
    np.testing.assert_allclose(scores.p_value, np.array([5, 5, 4, 2, 2, 1, 1]) / 5)


def test_held_out_rows_are_flagged_no_more_often_than_alpha(vae: VAE) -> None:
    held_out = vae.manifest["calibration"]["scores"]
    flagged = scores_of(held_out, held_out).is_anomaly(0.1)
    assert 0 < flagged.mean() <= 0.1


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_an_alpha_outside_of_0_and_1_is_refused(alpha: float) -> None:
    with pytest.raises(SettingError, match=r"alpha is .*; it must lie between 0 and 1, for example 0.01") as caught:
        scores_of([1.0], range(1_000)).is_anomaly(alpha)
    assert repr(alpha) in str(caught.value)


def test_an_alpha_that_the_calibration_cannot_support_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingError) as caught:
        scores_of([1.0], range(10)).is_anomaly(0.05)
    message = str(caught.value)
    assert "alpha is 0.05, but 10 calibration rows support none below 0.091" in message
    assert "use a larger alpha, or train with more rows held out" in message


def test_the_smallest_alpha_is_supported_whatever_the_number_of_calibration_rows() -> None:
    refused = []
    for num_rows in range(1, 500):
        try:
            flagged = scores_of([num_rows + 1.0], range(num_rows)).is_anomaly(1 / (1 + num_rows))
        except SettingError:
            refused.append(num_rows)
        else:
            assert flagged.tolist() == [True]
    assert refused == []


def test_a_model_supports_the_smallest_alpha_that_it_states(vae: VAE, rows: Rows) -> None:
    strange = vae.score({**rows, "income": np.full(40, 1e300)})
    assert np.all(strange.is_anomaly(vae.smallest_alpha))
    with pytest.raises(SettingError):
        strange.is_anomaly(vae.smallest_alpha * 0.99)


def test_a_calibration_table_survives_the_manifest(vae: VAE) -> None:
    document = vae.manifest["calibration"]
    table = Calibration.from_json(document)
    assert table.to_json() == document
    assert np.all(np.diff(table.scores) >= 0)
