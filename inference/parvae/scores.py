"""Anomaly scores in nats, and what they mean against held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        return {"scores": [float(score) for score in self.scores], "from_real_rows": self.from_real_rows}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The table that `to_json` wrote."""
        return cls(scores=np.array(document["scores"], np.float32), from_real_rows=bool(document["from_real_rows"]))


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
    reconstruct: Callable[[], Any]
    """Called once, by `expected`."""

    def __len__(self) -> int:
        return len(self.nats)

    @cached_property
    def p_value(self) -> NDArray[np.float64]:
        """(n,) conformal p-values; see `Calibration.p_value`."""
        return self.calibration.p_value(self.nats)

    @cached_property
    def expected(self) -> Any:
        """The rows as the model would have them: their reconstruction, in the form the rows came in."""
        return self.reconstruct()

    @cached_property
    def estimated_p_value(self) -> NDArray[np.float64]:
        """(n,) p-values that go on below 1 / (1 + m), an estimate without guarantee; see `parvae.tail.Tail`.

        Raises SettingError when the calibration rows are too few to tell the shape of the tail.
        """
        table = self.calibration
        beyond = np.minimum(table.tail.probability(self.nats), 1.0 / (1 + len(table.scores)))
        return np.where(self.nats > table.scores[-1], beyond, self.p_value)

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
