"""Anomaly scores in nats, and what they mean against held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.conformal import discoveries, flagging_rank
from parvae.tail import Tail


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scores of held-out rows, run through the exported graph, sorted."""

    scores: NDArray[np.float32]
    """(m,) nats, rising."""
    from_real_rows: bool
    """False when the model was trained to keep no real row, and its own samples stand in."""
    typical: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """What is usual of the "contributions" and "conditional" nats in these rows, where the bundle states it: the mean,
    outliers cut; in older bundles the median."""

    def p_value(self, nats: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of held-out rows at least as strange: (1 + #{s_i >= s}) / (1 + m), the conformal p-value.

        For a row exchangeable with the held-out rows, P(p <= alpha) <= alpha (Vovk, Gammerman and Shafer 2005).
        A score that is not a number gets the smallest p-value.
        """
        below = np.searchsorted(self.scores, nats, side="left")
        return (1 + len(self.scores) - np.where(np.isnan(nats), len(self.scores), below)) / (1 + len(self.scores))

    @cached_property
    def id(self) -> str:
        """Hash of the table."""
        return hashlib.sha256(self.scores.tobytes()).hexdigest()[:16]

    @cached_property
    def tail(self) -> Tail:
        """The tail of the scores, to estimate what lies beyond them."""
        return Tail.fit(self.scores)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        # repr of a float32 as float64 is exact, so the table read back is the table that was fitted.
        typical = {name: [float(nats) for nats in usual] for name, usual in self.typical.items()}
        return {
            "scores": [float(score) for score in self.scores],
            "from_real_rows": self.from_real_rows,
            **({"typical": typical} if typical else {}),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The table that `to_json` wrote."""
        return cls(
            scores=np.array(document["scores"], np.float32),
            from_real_rows=bool(document["from_real_rows"]),
            typical={name: np.array(usual, np.float32) for name, usual in document.get("typical", {}).items()},
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of n rows. Higher is stranger."""

    nats: NDArray[np.float32]
    """(n,) negative ELBO: what the row costs under the model."""
    contributions: NDArray[np.float32]
    """(n, parts) nats of each column, and of the latent code last; they sum to `nats`."""
    parts: tuple[str, ...]
    """Names of the contributions: the modelled columns, then "(latent)"."""
    calibration: Calibration
    expect: Callable[[], Any]
    """Called once, by `expected`."""
    strangeness: NDArray[np.float32] | None = None
    """(n,) where the model was trained to tell it (`model.denoising`): what p-values then rest on."""
    strangeness_parts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(n,) each, standardised. "distance" and "isolation" are measured to training rows in the bundle, the others are
    the model's alone; `strangeness` is the mean of those two and the mean of the others (in older bundles of all)."""
    conditional: NDArray[np.float32] | None = None
    """(n, columns) nats of each column given the others, where `contributions` also blame those that go with it. On
    Adult it names a column that was tampered with first in 51 % of rows, and they in 50 %; gradient boosting that is
    told how rows were tampered with names 58 % (`benchmarks/blame.py`)."""

    def __len__(self) -> int:
        return len(self.nats)

    @cached_property
    def p_value(self) -> NDArray[np.float64]:
        """(n,) conformal p-values; see `Calibration.p_value`."""
        return self.calibration.p_value(self.score)

    @property
    def score(self) -> NDArray[np.float32]:
        """(n,) what rows are ranked by: `strangeness` where the model tells it, else `nats`."""
        return self.nats if self.strangeness is None else self.strangeness

    def blame(self, *, conditional: bool = True) -> NDArray[np.float32]:
        """(n, columns) nats by which each column costs more than is usual in the calibration rows.

        `conditional` hides a column from the model that judges it, where the model was trained for that; without, or
        where it was not, a column at fault shares its blame with those that it goes with.
        """
        if conditional and self.conditional is not None:
            nats, typical = self.conditional, self.calibration.typical.get("conditional")
        else:
            nats, typical = self.contributions[:, : len(self.parts) - 1], self.calibration.typical.get("contributions")
        return nats if typical is None else nats - typical[: nats.shape[1]]

    def most_blamed(self, num_columns: int) -> NDArray[np.int64]:
        """(n, num_columns) numbers of the columns with the highest `blame`, highest first; names are in `parts`."""
        return np.argsort(-self.blame(), axis=1, kind="stable")[:, :num_columns]

    @cached_property
    def expected(self) -> Any:
        """The rows as the model would have them, in the form they came in.

        Every column given the others, where the model was trained for that; else the reconstruction of the row.
        """
        return self.expect()

    @cached_property
    def estimated_p_value(self) -> NDArray[np.float64]:
        """(n,) p-values that go on below 1 / (1 + m), an estimate without guarantee; see `parvae.tail.Tail`.

        Raises SettingError when the calibration rows are too few to tell the shape of the tail.
        """
        table = self.calibration
        beyond = np.minimum(table.tail.probability(self.score), 1.0 / (1 + len(table.scores)))
        return np.where(self.score > table.scores[-1], beyond, self.p_value)

    def is_anomaly(self, alpha: float = 0.01, *, confidence: float | None = None) -> NDArray[np.bool_]:
        """(n,) whether a row is stranger than all but a share `alpha` of normal rows.

        With `confidence`, that share holds with this probability for the calibration rows at hand, and not only on
        average over all that might have been drawn; see `parvae.conformal.flagging_rank`.

        Raises SettingError when alpha is not in (0, 1), or smaller than the calibration rows can support.
        """
        num_rows = len(self.calibration.scores)
        return self.p_value * (1 + num_rows) <= flagging_rank(num_rows, alpha, confidence) + 0.5

    def discoveries(self, rate: float = 0.1) -> NDArray[np.bool_]:
        """(n,) the rows to look into when a share `rate` of them may be false alarms; see `parvae.conformal`.

        Raises SettingError when rate is not in (0, 1).
        """
        return discoveries(self.p_value, rate)
