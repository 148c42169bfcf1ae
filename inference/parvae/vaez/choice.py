"""Which form a column takes: the one whose numbers cost the fewest bits, as far as the column alone tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.vaez.bins import Bins, fit_bins
from parvae.vaez.bounds import Bound
from parvae.vaez.columns import Numbers, Texts
from parvae.vaez.forms import Formed, candidate_forms
from parvae.vaez.pixel_fit import fit_pixels, pixel_bits, shape_of
from parvae.vaez.pixels import padded_symbols
from parvae.vaez.places import fit_places
from parvae.vaez.prediction import differences_of
from parvae.vaez.stream import Coded

EXCEPTION_BITS = 72.0
IMAGE_BIN_COST_BITS = 150.0
"""About what one more bin costs in the tables of an image, of which there are many."""
IMAGE_SAMPLE_BYTES = 1 << 19


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A form of a column, how its numbers are coded, and about how many bits that takes."""

    formed: Formed
    coded: Coded
    num_bits: float


def best_form(column: Numbers | Texts, bound: Bound, *, deltas: bool = True) -> Chosen | None:
    """The form of the present values that takes the fewest bits; None where no value is present.

    Without `deltas` numbers are never differences of their neighbours: the networks of a codec tell values.
    """
    if isinstance(column, Texts):
        differences = np.diff(column.codes, prepend=0)
        texts = [
            Formed(form="text", numbers=column.codes),
            Formed(form="text", numbers=differences, facts={"delta": 1}),
        ]
        return min((_chosen(formed, None) for formed in texts), key=lambda chosen: chosen.num_bits)
    values = column.values if column.valid is None else column.values[column.valid]
    flat = np.ascontiguousarray(values).reshape(-1)
    if not len(flat):
        return None
    if column.valid is None and values.ndim > 1 and values.dtype == np.uint8:
        return _image_form(values)
    forms = (formed for formed in candidate_forms(flat, bound) if deltas or not formed.facts.get("delta"))
    found = (_chosen(formed, column.valid) for formed in forms)
    best = min(found, key=lambda chosen: chosen.num_bits)
    return best if values.ndim == 1 else _by_place(best, len(flat) // len(values))


def _chosen(formed: Formed, valid: NDArray[np.bool_] | None) -> Chosen:
    bins, num_bits = fit_bins(formed.numbers)
    coded = Coded(numbers=formed.numbers, bins=bins, valid=valid)
    return Chosen(formed=formed, coded=coded, num_bits=num_bits + _bits_beside(formed))


def _bits_beside(formed: Formed) -> float:
    """What exceptions and distinct values take beside the numbers."""
    num_bits = 0.0 if formed.exceptions is None else EXCEPTION_BITS * float(formed.exceptions.sum())
    return num_bits if formed.levels is None else num_bits + 8.0 * formed.levels.nbytes


def _by_place(chosen: Chosen, row_size: int) -> Chosen:
    """The same form with tables for the places of a vector."""
    coded = chosen.coded
    symbols, _ = coded.bins.symbols_of(coded.numbers)
    places, num_bits = fit_places(symbols, len(coded.bins), row_size)
    num_bits += float(coded.bins.bits[symbols].sum(dtype=np.int64)) + _bits_beside(chosen.formed)
    return Chosen(formed=chosen.formed, coded=replace(coded, within=places), num_bits=num_bits)


def _image_form(values: NDArray[np.uint8]) -> Chosen:
    """Bytes (n, d...) in the context of their neighbours: as they are, or as differences from what these foretell."""
    shape = shape_of(values)
    images = values.reshape(-1, *shape)
    sample = images[:: max(1, images.size // IMAGE_SAMPLE_BYTES)]
    scale = len(images) / len(sample)

    def bits_of(form: Callable[[NDArray[np.uint8]], Formed]) -> float:
        bins, symbols, place_bits = _image_symbols(form(sample).numbers)
        return pixel_bits(padded_symbols(symbols, shape), len(bins), shape, scale) + scale * place_bits

    form = min((_plain_image, _differences), key=bits_of)
    formed = form(images)
    bins, symbols, place_bits = _image_symbols(formed.numbers)
    pixels, num_bits = fit_pixels(padded_symbols(symbols, shape), len(bins), shape)
    coded = Coded(numbers=formed.numbers, bins=bins, within=pixels)
    return Chosen(formed=formed, coded=coded, num_bits=num_bits + place_bits)


def _plain_image(images: NDArray[np.uint8]) -> Formed:
    return Formed(form="integer", numbers=images.reshape(-1))


def _differences(images: NDArray[np.uint8]) -> Formed:
    facts = {"shape": list(images.shape[1:])}
    return Formed(form="differences", numbers=differences_of(images).reshape(-1), facts=facts)


def _image_symbols(numbers: NDArray[np.integer[Any]]) -> tuple[Bins, NDArray[np.uint8], float]:
    """The bins of an image, its symbols, and the bits that its places inside the bins take."""
    bins, _ = fit_bins(numbers, IMAGE_BIN_COST_BITS)
    symbols, _ = bins.symbols_of(numbers)
    return bins, symbols, float(bins.bits[symbols].sum(dtype=np.int64))
