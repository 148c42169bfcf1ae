"""By which rule the rows of files are flagged, and what else stands beside their scores; the same for every caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parvae.errors import SettingError

if TYPE_CHECKING:
    from parvae.model import VAE

DEFAULT_ALPHA = 0.01


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How rows are scored: all that decides what an output holds, beside the model and the rows."""

    alpha: float | None
    """Share of normal rows that may be flagged; None: no row is flagged by it."""
    discovery_rate: float | None
    """Share of a file's flagged rows that may be normal, where that is the rule."""
    num_explained: int
    """Columns that are explained in every row."""

    @classmethod
    def chosen(
        cls,
        vae: VAE,
        *,
        alpha: float | None,
        discovery_rate: float | None,
        num_explained: int,
        note: Callable[[str], None],
    ) -> Scoring:
        """What was asked for, completed by defaults that the calibration of the model supports.

        Raises SettingError when a number is out of range, or the calibration too small for it.
        """
        if discovery_rate is None:
            return cls(alpha=_supported(vae, alpha, note), discovery_rate=None, num_explained=num_explained)
        if alpha is not None:
            raise SettingError(
                f"--alpha {alpha} and --fdr {discovery_rate} flag rows by different rules: give --alpha or --fdr"
            )
        if not 0 < discovery_rate < 1:
            raise SettingError(f"--fdr is {discovery_rate}; it must lie between 0 and 1, for example 0.1")
        return cls(alpha=None, discovery_rate=discovery_rate, num_explained=num_explained)

    def settings(self, vae: VAE) -> str:
        """These facts as the text that an output carries: another text, another output."""
        rule = f"alpha={self.alpha}" if self.discovery_rate is None else f"fdr={self.discovery_rate}"
        explained = f" explain={self.num_explained}" if self.num_explained else ""
        return f"{rule} calibration={vae.calibration_id}{explained}"


def _supported(vae: VAE, alpha: float | None, note: Callable[[str], None]) -> float | None:
    """The alpha to flag by; None when none was asked for and the calibration supports no default."""
    smallest = vae.smallest_alpha
    if alpha is None and smallest > DEFAULT_ALPHA:
        note(
            f"note: no is_anomaly column, because the model has too few calibration rows for alpha {DEFAULT_ALPHA}; "
            f"name one of at least {smallest:.2g} with --alpha"
        )
        return None
    alpha = DEFAULT_ALPHA if alpha is None else alpha
    if not 0 < alpha < 1 or alpha < smallest:
        raise SettingError(f"--alpha is {alpha}; with this model it must lie between {smallest:.2g} and 1")
    return alpha
