"""Forms: how a column becomes whole numbers, and comes back, bit by bit or within its bound.

Each form turns n present values into n int64 numbers for `bins`. Values that it cannot give back (NaN, infinities,
-0.0, a float that is no decimal) are exceptions: kept as they are, with their positions, beside the numbers. All
arithmetic of the way back is of whole numbers or a single float64 operation, so every machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.vaez.bounds import Bound, Promise
from parvae.vaez.prediction import images_from

Integers = NDArray[np.integer[Any]]
Values = NDArray[Any]

MAX_EXCEPTION_SHARE = 0.05
MAX_DECIMALS = 15
EXACT = float(1 << 53)
"""Whole numbers up to here are exact in float64."""
STEP_MARGIN = 1.0 - 2.0**-20
"""Steps are this much smaller than twice the bound, so that rounding does not break it."""
MAX_LEVELS = 4096
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, kw_only=True, eq=False)
class Formed:
    """A column in one form."""

    form: str
    numbers: Integers
    facts: dict[str, Any] = field(default_factory=dict)
    """What the way back needs beside the numbers; plain JSON."""
    levels: Values | None = None
    """Distinct values, when numbers are indices into them."""
    exceptions: NDArray[np.bool_] | None = None
    """(n,) where a value stands for itself."""


def candidate_forms(values: Values, bound: Bound) -> Iterator[Formed]:
    """Every form that gives the present `values` (n,), n > 0, back within `bound`."""
    if values.dtype.kind in "iub":
        yield from _integer_forms(values, bound)
    else:
        yield from _float_forms(values, bound)


def values_from(form: str, numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: Any) -> Values:
    """The values (n,) of a form, exceptions left out.

    Raises CorruptFileError when this version does not know the form.
    """
    if facts.get("delta"):
        numbers = np.cumsum(numbers, dtype=np.int64)  # wraps around as the differences did
    if form not in _BACK:
        raise CorruptFileError(f"a column has the form {form!r}, which this version does not know; upgrade parvae")
    return _BACK[form](numbers, facts, levels, np.dtype(dtype))


def _with_deltas(formed: Formed) -> Iterator[Formed]:
    yield formed
    if len(formed.numbers) > 1:
        differences = np.diff(formed.numbers, prepend=np.int64(0))  # wraps around
        facts = {**formed.facts, "delta": 1}
        yield Formed(
            form=formed.form, numbers=differences, facts=facts, levels=formed.levels, exceptions=formed.exceptions
        )


def _integer_forms(values: Values, bound: Bound) -> Iterator[Formed]:
    wide: Integers = values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64)
    yield from _with_deltas(Formed(form="integer", numbers=wide))
    if bound.promise is not Promise.ABSOLUTE or bound.value < 1 or values.dtype.kind == "b":
        return
    reach = int(min(bound.value, 2.0**61))
    step = 2 * reach + 1
    minimum = int(values.min())
    distances = values.astype(np.uint64) - np.uint64(minimum % (1 << 64))
    steps = distances // np.uint64(step)
    highest = int(steps.max())
    limit = int(np.iinfo(values.dtype).max)
    if minimum + highest * step + reach <= limit:  # the middle of the last step is a value of the type
        facts = {"step": step, "first": minimum + reach}
        yield from _with_deltas(Formed(form="coarse", numbers=steps.astype(np.int64), facts=facts))


def _float_forms(values: Values, bound: Bound) -> Iterator[Formed]:
    pattern = values.view(_UNSIGNED[values.dtype.itemsize])
    distinct, index = np.unique(pattern, return_inverse=True)
    if len(distinct) <= min(MAX_LEVELS, len(values) // 4):
        order = np.argsort(distinct.view(values.dtype), kind="stable")  # by value: near values get near numbers
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        levels = distinct[order].view(values.dtype)
        yield from _with_deltas(Formed(form="levels", numbers=rank[index].astype(np.int64), levels=levels))
    yield Formed(form="bits", numbers=_ordered(pattern))
    decimal = _decimal(values, pattern)
    if decimal is not None:
        yield from _with_deltas(decimal)
    if bound.promise is Promise.ABSOLUTE:
        steps = _steps(values, bound.value)
        if steps is not None:
            yield from _with_deltas(steps)
    if bound.promise in (Promise.POINTWISE, Promise.DIGITS):
        yield from _mantissa(values, pattern, bound.pointwise)


def _decimal(values: Values, pattern: Values) -> Formed | None:
    """Floats that are whole numbers of 10**-places, for the fewest places at which almost all of them are."""
    finite = np.isfinite(values)
    wide = np.where(finite, values, 0).astype(np.float64)
    sample = slice(None, None, max(1, len(values) // 512))
    for places in range(MAX_DECIMALS + 1):
        if _decimal_exceptions(wide[sample], pattern[sample], places, values.dtype)[1].mean() > 2 * MAX_EXCEPTION_SHARE:
            continue
        numbers, exceptions = _decimal_exceptions(wide, pattern, places, values.dtype)
        if exceptions.mean() <= MAX_EXCEPTION_SHARE:
            return Formed(form="decimal", numbers=numbers, facts={"places": places}, exceptions=exceptions)
    return None


def _decimal_exceptions(
    wide: NDArray[np.float64], pattern: Values, places: int, dtype: Any
) -> tuple[Integers, NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        scaled = np.rint(wide * float(10**places))
    numbers = np.where(np.abs(scaled) < EXACT, scaled, 0.0).astype(np.int64)
    again = _from_decimal(numbers, {"places": places}, None, np.dtype(dtype))
    exceptions = again.view(pattern.dtype) != pattern
    return np.where(exceptions, numbers[0], numbers), exceptions


def _steps(values: Values, reach: float) -> Formed | None:
    """Floats as multiples of a step of twice the bound."""
    step = 2.0 * reach * STEP_MARGIN
    if step < 5e-300:
        return None
    wide = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        counted = np.rint(wide / step)
        fits = np.abs(counted) < EXACT  # False for NaN
        numbers = np.where(fits, counted, 0.0).astype(np.int64)
        again = _from_steps(numbers, {"step": step}, None, values.dtype)
        exceptions = ~(np.abs(wide - again.astype(np.float64)) <= reach) | ~fits
    exceptions |= (values == 0) & np.signbit(values)
    if exceptions.all():
        return None
    fill = numbers[int(np.argmin(exceptions))]
    return Formed(
        form="steps", numbers=np.where(exceptions, fill, numbers), facts={"step": step}, exceptions=exceptions
    )


def _mantissa(values: Values, pattern: Values, share: float) -> Iterator[Formed]:
    """Floats with their last bits rounded away: the error of a value stays below `share` of it."""
    mantissa_bits = np.finfo(values.dtype).nmant
    kept = int(np.ceil(-np.log2(share))) - 1  # rounding to b bits is off by at most 2**-(b + 1) of the value
    shift = mantissa_bits - max(kept, 0)
    if shift <= 0:
        return
    numbers = _ordered(pattern)
    rounded = np.where(
        numbers < 0, ~((~numbers + (1 << (shift - 1))) >> shift), (numbers + (1 << (shift - 1))) >> shift
    )
    facts = {"shift": shift}
    again = _from_mantissa(rounded, facts, None, values.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float64)
        exceptions = ~(np.abs(wide - again.astype(np.float64)) <= share * np.abs(wide))
    exceptions |= (values == 0) | ~np.isfinite(values)
    exceptions &= again.view(pattern.dtype) != pattern
    if exceptions.all():
        return
    fill = rounded[int(np.argmin(exceptions))]
    yield Formed(form="mantissa", numbers=np.where(exceptions, fill, rounded), facts=facts, exceptions=exceptions)


def _ordered(pattern: Values) -> Integers:
    """Bit patterns of floats as numbers in the order of the floats: those below zero count down from -1."""
    bits = 8 * pattern.dtype.itemsize
    signed = pattern.view(f"i{pattern.dtype.itemsize}").astype(np.int64)
    ordered: Integers = np.where(signed < 0, ~(signed + np.int64((1 << (bits - 1)) - 1) + np.int64(1)), signed)
    return ordered


def _pattern(ordered: Integers, dtype: np.dtype[Any]) -> Values:
    bits = 8 * dtype.itemsize
    signed = np.where(ordered < 0, ~ordered - np.int64((1 << (bits - 1)) - 1) - np.int64(1), ordered)
    return signed.astype(f"i{dtype.itemsize}").view(dtype)


def _from_integer(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    return numbers.view(np.uint64) if dtype == np.uint64 else numbers.astype(dtype, copy=False)


def _from_coarse(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    wide = numbers.view(np.uint64) * np.uint64(facts["step"]) + np.uint64(int(facts["first"]) % (1 << 64))
    return _from_integer(wide.view(np.int64), facts, levels, dtype)


def _from_levels(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    if levels is None or (len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(levels)):
        raise CorruptFileError("a column points outside its distinct values; the file is damaged")
    return levels[numbers]


def _from_bits(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    return _pattern(numbers, dtype)


def _from_decimal(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    # One correctly rounded division of exact numbers (10**15 < 2**53): what a parser makes of the decimal text.
    return (numbers.astype(np.float64) / float(10 ** int(facts["places"]))).astype(dtype)


def _from_steps(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    with np.errstate(over="ignore"):
        return (numbers.astype(np.float64) * float(facts["step"])).astype(dtype)


def _from_mantissa(numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]) -> Values:
    shift = int(facts["shift"])
    return _pattern(np.where(numbers < 0, ~(~numbers << shift), numbers << shift), dtype)


def _from_differences(
    numbers: Integers, facts: Mapping[str, Any], levels: Values | None, dtype: np.dtype[Any]
) -> Values:
    height, width, channels = facts["shape"]
    return images_from(numbers.astype(np.uint8, copy=False).reshape(-1, height, width, channels)).reshape(-1)


_BACK: Mapping[str, Callable[[Integers, Mapping[str, Any], Values | None, np.dtype[Any]], Values]] = {
    "integer": _from_integer,
    "coarse": _from_coarse,
    "levels": _from_levels,
    "bits": _from_bits,
    "decimal": _from_decimal,
    "steps": _from_steps,
    "mantissa": _from_mantissa,
    "differences": _from_differences,
}
