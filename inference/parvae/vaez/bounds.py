"""What a compressed column promises: nothing lost, or every value within a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np

from parvae.errors import SettingError


class Promise(StrEnum):
    """How a column may differ after decompression. NaN, infinities, -0.0 and nulls always come back exactly."""

    LOSSLESS = "lossless"
    ABSOLUTE = "abs"
    """|x - x'| <= value."""
    RANGE = "rel"
    """|x - x'| <= value * (maximum - minimum of the column)."""
    POINTWISE = "pw"
    """|x - x'| <= value * |x|."""
    DIGITS = "digits"
    """`value` significant digits are right: pointwise with 0.5 * 10**-value."""
    DROP = "drop"
    """The column is left out."""


EXAMPLES = "0.01, abs:0.01, rel:0.001 (of the column's range), pw:1e-4 (of each value), digits:5, lossless or drop"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A promise and its figure."""

    promise: Promise = Promise.LOSSLESS
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.promise in (Promise.LOSSLESS, Promise.DROP):
            return
        if not (math.isfinite(self.value) and self.value > 0):
            raise SettingError(f"a bound of {self.value!r}; it must be a number above 0, for example {EXAMPLES}")
        if self.promise is Promise.POINTWISE and self.value >= 1:
            raise SettingError(f"a pointwise bound of {self.value!r}; it must be below 1, for example pw:1e-3")
        if self.promise is Promise.DIGITS and (self.value != int(self.value) or self.value > 16):
            raise SettingError(f"{self.value!r} digits; it must be a whole number from 1 to 16")

    @classmethod
    def parse(cls, given: Any) -> Self:
        """The bound that a caller wrote: a number (absolute), or one of the texts in EXAMPLES."""
        if isinstance(given, cls):
            return given
        if isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool):
            return cls(promise=Promise.ABSOLUTE, value=float(given))
        kind, _, figure = str(given).rpartition(":")
        try:
            if not kind and figure in (Promise.LOSSLESS, Promise.DROP):
                return cls(promise=Promise(figure))
            promise = Promise(kind or Promise.ABSOLUTE)
            if promise in (Promise.LOSSLESS, Promise.DROP):
                raise ValueError(f"{promise} takes no figure")
            return cls(promise=promise, value=float(figure))
        except ValueError as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(f"{given!r} is no bound; give {EXAMPLES}") from error

    def within(self, minimum: float, maximum: float) -> Bound:
        """The same promise without reference to the column's range."""
        if self.promise is not Promise.RANGE:
            return self
        width = self.value * (maximum - minimum)
        if not (math.isfinite(width) and width > 0):
            return Bound()
        return Bound(promise=Promise.ABSOLUTE, value=width)

    @property
    def pointwise(self) -> float:
        """The largest |x - x'| / |x| of a pointwise or digits bound."""
        assert self.promise in (Promise.POINTWISE, Promise.DIGITS)
        return self.value if self.promise is Promise.POINTWISE else 0.5 * 10.0**-self.value

    def __str__(self) -> str:
        return self.promise.value if not self.value else f"{self.promise}:{self.value!r}"


def parse_bounds(bounds: Mapping[str, Any] | None) -> dict[str, Bound]:
    """Bounds by column name; "*" stands for every column of floats that has none of its own."""
    return {name: Bound.parse(given) for name, given in (bounds or {}).items()}
