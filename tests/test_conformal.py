"""What calibration promises, on samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from parvae.conformal import discoveries, discovery_threshold, flagging_rank, smallest_alpha
from parvae.errors import SettingError
from parvae.scores import Calibration, Scores
from parvae.tail import Tail


def scores_of(nats: object, calibration: object) -> Scores:
    values = np.asarray(nats, np.float32)
    table = Calibration(scores=np.sort(np.asarray(calibration, np.float32)), from_real_rows=True)
    return Scores(nats=values, contributions=values[:, None], parts=("x",), calibration=table, expect=lambda: None)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_p_values_of_fresh_normal_rows_are_valid(alpha: float) -> None:
    """Over 10,000 rows, each with calibration rows of its own, the share of p-values of at most alpha is binomial.

    Rows that share calibration rows are not independent: their share spreads wider than the binomial.
    """
    rng = np.random.default_rng(0)
    num_rows, num_calibration = 10_000, 999
    flagged = sum(
        int((scores_of(rng.gamma(2.0, size=1), rng.gamma(2.0, size=num_calibration)).p_value <= alpha).sum())
        for _ in range(num_rows)
    )
    low, high = stats.binom.interval(0.99, num_rows, alpha)
    assert low <= flagged <= high


@pytest.mark.parametrize(
    ("num_rows", "alpha", "rank"),
    [(1_000, 0.01, 5), (5_000, 0.01, 39), (10_000, 0.01, 84), (10_000, 0.001, 5), (50_000, 0.001, 39)],
)
def test_a_confidence_lowers_the_rank_to_what_the_beta_distribution_allows(
    num_rows: int, alpha: float, rank: int
) -> None:
    assert flagging_rank(num_rows, alpha, 0.95) == rank
    assert stats.beta.cdf(alpha, rank, num_rows + 1 - rank) >= 0.95
    assert stats.beta.cdf(alpha, rank + 1, num_rows - rank) < 0.95
    assert flagging_rank(num_rows, alpha) == int(alpha * (num_rows + 1))


def test_with_confidence_few_calibration_samples_flag_more_than_alpha() -> None:
    rng = np.random.default_rng(1)
    exceed = {None: 0, 0.95: 0}
    for _ in range(400):
        table = np.sort(rng.random(1_000))
        for confidence in exceed:
            rank = flagging_rank(1_000, 0.05, confidence)
            exceed[confidence] += 1.0 - table[-rank] > 0.05  # the true share above the threshold
    assert exceed[0.95] <= stats.binom.ppf(0.99, 400, 0.05)
    assert exceed[None] > 100


def test_the_smallest_alpha_is_the_edge_of_what_is_refused() -> None:
    for confidence in (None, 0.95):
        for num_rows in (1, 19, 298, 1_000):
            smallest = smallest_alpha(num_rows, confidence)
            assert flagging_rank(num_rows, smallest, confidence) == 1
            with pytest.raises(SettingError, match="support none below"):
                flagging_rank(num_rows, 0.99 * smallest, confidence)
    assert smallest_alpha(0, 0.95) == 1.0


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_a_confidence_outside_of_0_and_1_is_refused(confidence: float) -> None:
    with pytest.raises(SettingError, match=r"confidence is .*between 0 and 1, for example 0.95"):
        scores_of([1.0], range(100)).is_anomaly(0.1, confidence=confidence)


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(2)
    for share in (0.0, 0.1, 0.5):
        p_values = np.where(rng.random(300) < share, rng.random(300) * 1e-3, rng.random(300))
        wanted = stats.false_discovery_control(p_values, method="bh") <= 0.1
        np.testing.assert_array_equal(discoveries(p_values, 0.1), wanted)
    assert discoveries(np.empty(0), 0.1).shape == (0,)
    assert discovery_threshold(np.array([0.5, 1.0]), np.array([3, 7]), 0.1) == 0.0


def test_the_share_of_false_discoveries_stays_below_its_rate() -> None:
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(200):
        is_normal = np.arange(200) < 180
        nats = rng.normal(size=200) + np.where(is_normal, 0.0, 4.0)
        found = scores_of(nats, rng.normal(size=2_000)).discoveries(0.2)
        shares.append((found & is_normal).sum() / max(1, found.sum()))
        assert found[~is_normal].mean() > 0.2
    assert np.mean(shares) <= 0.2 * 180 / 200 + 0.02


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_outside_of_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(SettingError, match=r"false discovery rate is .*for example 0.1"):
        scores_of([1.0], range(100)).discoveries(rate)


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.6])
def test_the_tail_recovers_the_distribution_it_was_drawn_from(shape: float) -> None:
    drawn = stats.genpareto(shape, scale=2.0).rvs(20_000, random_state=4).astype(np.float32)
    tail = Tail.fit(np.sort(drawn))
    assert abs(tail.shape - shape) < 0.1
    rare = stats.genpareto(shape, scale=2.0).isf(1e-4)
    assert 2e-5 < tail.probability(np.array([rare], np.float32))[0] < 5e-4


def test_estimates_begin_where_the_table_ends() -> None:
    table = np.random.default_rng(5).exponential(size=2_000)
    scores = scores_of([0.1, 2.0, table.max(), table.max() + 3.0, table.max() + 9.0, np.inf, np.nan], table)
    np.testing.assert_array_equal(scores.estimated_p_value[:3], scores.p_value[:3])
    assert scores.p_value[3] == 1 / 2_001
    assert np.all(np.diff(scores.estimated_p_value[2:6]) < 0)
    assert scores.estimated_p_value[4] < 0.05 * scores.estimated_p_value[3]  # exp(-6) in truth
    assert scores.estimated_p_value[6] == 1 / 2_001


def test_a_tail_of_too_few_rows_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingError, match="needs 50; hold out more rows, or calibrate on more with vae calibrate"):
        _ = scores_of([1.0], np.arange(300.0)).estimated_p_value
