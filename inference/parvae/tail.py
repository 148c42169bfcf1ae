"""Beyond the calibration table: an estimate of how rare a score is, from the shape of the tail. No guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import SettingError

TAIL_SHARE = 0.1
MIN_EXCESSES = 50
"""Scores that a tail is fitted to at least: below, its shape is a guess."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A generalised Pareto tail: P(score > threshold + y) = share * (1 + shape * y / scale) ** (-1 / shape)."""

    threshold: float
    share: float
    """Share of scores above the threshold."""
    scale: float
    shape: float

    @classmethod
    def fit(cls, scores: NDArray[np.float32]) -> Self:
        """The tail of rising `scores`, by the estimator of Zhang and Stephens 2009 over their highest tenth.

        The excesses over a high threshold tend to this family whatever the scores (Pickands 1975).
        Raises SettingError when there are too few scores to tell the shape.
        """
        finite = scores[np.isfinite(scores)].astype(np.float64)
        threshold = finite[-1 - int(TAIL_SHARE * len(finite))] if len(finite) else 0.0
        excesses = finite[finite > threshold] - threshold
        num_excesses = len(excesses)
        if num_excesses < MIN_EXCESSES:
            raise SettingError(
                f"{len(finite)} calibration rows give a tail of {num_excesses} scores, and an estimate beyond them "
                f"needs {MIN_EXCESSES}; hold out more rows, or calibrate on more with vae calibrate"
            )
        num_points = 30 + math.isqrt(num_excesses)
        quartile = excesses[int(num_excesses / 4 + 0.5) - 1]
        grid = 1.0 / excesses[-1] + (1.0 - np.sqrt(num_points / (np.arange(num_points) + 0.5))) / (3.0 * quartile)
        shapes = np.log1p(-grid[:, None] * excesses).mean(axis=1)
        log_likelihood = num_excesses * (np.log(-grid / shapes) - shapes - 1.0)
        weights = np.exp(log_likelihood - log_likelihood.max())
        rate = float(grid @ (weights / weights.sum()))
        shape = float(np.log1p(-rate * excesses).mean())
        share = num_excesses / (len(scores) + 1.0)
        return cls(threshold=float(threshold), share=share, scale=-shape / rate, shape=shape)

    def probability(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """P(a normal row scores higher), for scores above the threshold."""
        excesses = np.maximum(scores.astype(np.float64) - self.threshold, 0.0)
        with np.errstate(divide="ignore"):  # log(0) where the tail has an end and the score lies beyond it
            log_survival = -np.log1p(np.maximum(self.shape * excesses / self.scale, -1.0)) / self.shape
        return np.asarray(self.share * np.exp(log_survival))
