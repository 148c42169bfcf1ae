"""Anomaly scores in nats, and what they mean against held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import SettingError


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

    def is_anomaly(self, alpha: float = 0.01) -> NDArray[np.bool_]:
        """(n,) whether a row is stranger than all but a share `alpha` of normal rows.

        Raises SettingError when alpha is not in (0, 1), or smaller than the calibration rows can support.
        """
        num_rows = len(self.calibration.scores)
        if not 0 < alpha < 1:
            raise SettingError(f"alpha is {alpha!r}; it must lie between 0 and 1, for example 0.01")
        if alpha < 1 / (num_rows + 1):
            raise SettingError(
                f"alpha is {alpha!r}, but {num_rows} calibration rows support none below {1 / (num_rows + 1):.2g}; "
                "use a larger alpha, or train with more rows held out"
            )
        return self.p_value <= alpha
