"""Dates, times and durations as seconds, and back: what the graphs take is a number.

A date or timestamp is the seconds since 1970 in UTC, a time of day those since midnight, a duration its length.
float64 holds a microsecond of any year to 2255, and no nanosecond. Text counts as a date or timestamp where it is
written as ISO 8601 does with hyphens; without a zone it is read in UTC.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
SECONDS_PER_DAY = 86_400
ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ].*)?")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def unit_of(arrow_type: str) -> str:
    """The numpy unit of a temporal Arrow type: D, s, ms, us or ns.

    >>> unit_of("timestamp[us, tz=Europe/Rome]"), unit_of("date32[day]"), unit_of("date64[ms]")
    ('us', 'D', 'ms')
    """
    found = re.search(r"\[(\w+)", arrow_type)
    name = found[1] if found else "us"
    return "D" if name == "day" else name


def seconds_from_ticks(ticks: NDArray[Any], unit: str) -> NDArray[np.float64]:
    """Ticks of a unit as seconds; NaN stays NaN."""
    numbers = ticks.astype(np.float64, copy=False)
    seconds: NDArray[np.float64] = numbers * SECONDS_PER_DAY if unit == "D" else numbers / TICKS_PER_SECOND[unit]
    return seconds


def ticks_from_seconds(seconds: NDArray[np.float64], unit: str) -> NDArray[np.int64]:
    """Seconds as whole ticks of a unit; a day is the one that the second lies in, and NaN is 0."""
    known = np.nan_to_num(seconds, nan=0.0)
    if unit == "D":
        return np.floor(known / SECONDS_PER_DAY).astype(np.int64)
    whole = np.floor(known)
    ticks: NDArray[np.int64] = whole.astype(np.int64) * TICKS_PER_SECOND[unit]
    fine = min(TICKS_PER_SECOND[unit], TICKS_PER_SECOND["us"])  # float64 knows no nanosecond of our days
    return ticks + np.rint((known - whole) * fine).astype(np.int64) * (TICKS_PER_SECOND[unit] // fine)


def seconds_from_numpy(values: NDArray[Any]) -> NDArray[np.float64]:
    """datetime64 and timedelta64 as seconds; NaT is NaN."""
    unit, count = np.datetime_data(values.dtype)
    if unit not in ("D", *TICKS_PER_SECOND):  # weeks, months, hours and the like
        values, unit, count = values.astype(f"{values.dtype.kind}8[s]"), "s", 1
    seconds = seconds_from_ticks(values.astype(np.int64), unit) * count
    return np.where(np.isnat(values), np.nan, seconds)


def numpy_from_seconds(seconds: NDArray[np.float64], arrow_type: str, kind: str) -> NDArray[Any]:
    """Seconds as datetime64 (`kind` "M") or timedelta64 ("m") in the unit of the column; NaN is NaT."""
    unit = unit_of(arrow_type)
    times: NDArray[Any] = ticks_from_seconds(seconds, unit).astype(f"{kind}8[{unit}]")
    times[np.isnan(seconds)] = "NaT"
    return times


def seconds_from_text(text: str) -> float:
    """Seconds of a date or timestamp written in ISO 8601; NaN where the text is something else.

    >>> seconds_from_text("1970-01-02"), seconds_from_text("1970-01-01 01:00:00.5+01:00"), seconds_from_text("soon")
    (86400.0, 0.5, nan)
    """
    if not ISO_DATE.fullmatch(text):
        return float("nan")
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return float("nan")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH).total_seconds()


def texts_from_seconds(seconds: NDArray[np.float64], *, are_days: bool) -> list[str | None]:
    """Seconds as ISO 8601 text in UTC, to the microsecond where that is not 0, or as days alone; NaN is None."""
    times = numpy_from_seconds(seconds, "date32[day]" if are_days else "timestamp[us]", "M")
    texts = np.datetime_as_string(times).tolist()
    return [None if text == "NaT" else text.removesuffix(".000000") for text in texts]


def seconds_from_levels(texts: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) seconds of rows whose texts are `texts[rows]`."""
    return np.array([seconds_from_text(text) for text in texts], np.float64)[rows]
