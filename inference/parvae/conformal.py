"""What held-out rows promise about new ones: flags at a level, with a confidence, and over many rows at once.

Letters: n calibration rows, k the rank (from the top) that a flagged score reaches.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from parvae.errors import SettingError

EXAMPLE_ALPHA = 0.01


def flagging_rank(num_rows: int, alpha: float, confidence: float | None = None) -> int:
    """The k for which rows with a p-value of at most k / (n + 1) may be flagged.

    Without `confidence`, a normal row is flagged with probability at most alpha on average over calibration samples
    (Vovk, Gammerman and Shafer 2005). With it, the share of normal rows that this very sample flags is at most alpha
    with that probability: it has a Beta(k, n + 1 - k) distribution (Vovk 2012, Bates et al. 2023).

    Raises SettingError when alpha or confidence is not in (0, 1), or n rows cannot support them.
    """
    for name, value, example in (("alpha", alpha, EXAMPLE_ALPHA), ("confidence", confidence, 0.95)):
        if value is not None and not 0 < value < 1:
            raise SettingError(f"{name} is {value!r}; it must lie between 0 and 1, for example {example}")
    smallest = smallest_alpha(num_rows, confidence)
    if alpha < smallest:
        at = "" if confidence is None else f" with confidence {confidence:g}"
        raise SettingError(
            f"alpha is {alpha!r}, but {num_rows} calibration rows support none below {smallest:.2g}{at}; "
            "use a larger alpha, or train with more rows held out"
        )
    if confidence is None:
        # 1 / (n + 1) as a float times n + 1 may fall just short of 1.
        return int(alpha * (num_rows + 1) * (1.0 + 1e-12))
    # P(Beta(k, n + 1 - k) <= alpha) = P(Binomial(n, alpha) >= k) must be at least the confidence.
    at_most = np.cumsum(_binomial(num_rows, alpha))  # [k - 1] = P(Binomial < k)
    return int(np.searchsorted(at_most, (1.0 - confidence) * (1.0 + 1e-12), side="right"))


def smallest_alpha(num_rows: int, confidence: float | None = None) -> float:
    """The smallest alpha that n calibration rows support."""
    if confidence is None:
        return 1.0 / (1 + num_rows)
    if not num_rows:
        return 1.0
    return -math.expm1(math.log1p(-confidence) / num_rows)


def discoveries(p_values: NDArray[np.float64], rate: float) -> NDArray[np.bool_]:
    """(n,) the rows that stand out when the share of false alarms among them may be `rate` in expectation.

    Benjamini and Hochberg 1995; conformal p-values of one calibration sample depend on each other positively, which
    the procedure allows (Bates et al. 2023, theorem 2). Raises SettingError when rate is not in (0, 1).
    """
    return p_values <= discovery_threshold(*np.unique(p_values, return_counts=True), rate)


def discovery_threshold(values: NDArray[np.float64], counts: NDArray[np.int64], rate: float) -> float:
    """The largest p-value that is still a discovery among `counts` rows at each of the rising `values`; 0 for none.

    A table of counts is enough, however many rows there are: conformal p-values take n + 1 values.
    """
    if not 0 < rate < 1:
        raise SettingError(f"the false discovery rate is {rate!r}; it must lie between 0 and 1, for example 0.1")
    holds = np.flatnonzero(values * counts.sum() <= rate * np.cumsum(counts))
    return float(values[holds[-1]]) if holds.size else 0.0


def _binomial(num_rows: int, probability: float) -> NDArray[np.float64]:
    """(n + 1,) probabilities of 0, 1, ..., n."""
    counts = np.arange(num_rows, dtype=np.float64)
    ratios = np.log(num_rows - counts) - np.log(counts + 1.0) + math.log(probability) - math.log1p(-probability)
    return np.exp(np.concatenate([[0.0], np.cumsum(ratios)]) + num_rows * math.log1p(-probability))
