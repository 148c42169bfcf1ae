"""The stream of a block: the symbols of all its columns of whole numbers, each in its context, and their tables.

A column of one number a row finds its context in the columns decoded before it (`contexts`), an element of a vector in
its place (`places`), one of an image in its neighbours (`pixels`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import Decoder, Part, Stream, encode, lanes_for
from parvae.vaez.bins import Bins, all_tables_from, levels_of, tables_from
from parvae.vaez.contexts import choose_parents
from parvae.vaez.parents import Track
from parvae.vaez.pixels import PixelContexts, padded_symbols
from parvae.vaez.places import PlaceContexts
from parvae.vaez.row_contexts import RowContexts, fit_rows

Valid = NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """The numbers of a column and how they become symbols."""

    numbers: NDArray[np.integer[Any]]
    """(count,) what is not null; of an image (n * d,)."""
    bins: Bins
    valid: Valid = None
    within: PlaceContexts | PixelContexts | None = None
    """Contexts inside a row that holds more than one number: such columns have no parents and are none."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A stream, the tables it needs, and what the facts of the block must say of it."""

    stream: Stream
    tables: bytes
    order: list[int]
    entries: dict[int, dict[str, Any]]
    """By column."""


def encode_columns(coded: Mapping[int, Coded]) -> Encoded:
    """One stream for all columns."""
    taken = {place: one.bins.symbols_of(one.numbers) for place, one in coded.items()}
    tracks = {
        place: _track(taken[place][0], len(one.bins), one.numbers, one.valid)
        for place, one in coded.items()
        if one.within is None
    }
    order, parents = choose_parents(tracks)
    order += [place for place in coded if place not in tracks]
    tables = bytearray()
    parts: list[Part] = []
    entries: dict[int, dict[str, Any]] = {}
    decoded: list[int] = []
    num_bits = 0.0
    for place in order:
        one, (symbols, places) = coded[place], taken[place]
        tables += one.bins.to_bytes()
        if one.within is None:
            contexts = fit_rows(tracks[place], parents[place], {name: tracks[name] for name in decoded})
            decoded.append(place)
            entries[place] = contexts.facts()
            tables += contexts.to_bytes()
            table_index = _at_present(contexts.tables_at(tracks), one.valid)
            own, levels = _row_parts(symbols, len(one.bins), table_index, contexts.num_tables)
        else:
            entries[place] = one.within.facts()
            tables += one.within.to_bytes()
            if isinstance(one.within, PixelContexts):
                own, levels = _pixel_parts(symbols, len(one.bins), one.within)
            else:
                table_index = one.within.tables_at(len(symbols))
                own, levels = _row_parts(symbols, len(one.bins), table_index, one.within.num_tables)
        tables += levels.tobytes()
        own += one.bins.place_parts(symbols, places)
        num_bits += sum(map(_bits_of, own))
        parts += own
    num_symbols = sum(len(part.symbols) for part in parts)
    stream = encode(parts, lanes_for(num_bits, num_symbols))
    return Encoded(stream=stream, tables=bytes(tables), order=order, entries=entries)


def decode_columns(
    decoder: Decoder,
    tables: bytes,
    order: Sequence[int],
    entries: Sequence[Mapping[str, Any]],
    num_rows: int,
    valid_of: Callable[[Mapping[str, Any]], Valid],
    wanted: Collection[int],
) -> dict[int, NDArray[np.integer[Any]]]:
    """The numbers of the columns in `order`, up to the last one that is wanted.

    Raises CorruptFileError when the stream does not end as it should.
    """
    models = _models_from(tables, order, entries, num_rows)
    missing = set(wanted).intersection(order)
    numbers: dict[int, NDArray[np.integer[Any]]] = {}
    tracks: dict[int, Track] = {}
    all_tables = all_tables_from([model.levels for model in models])
    for place, model, coding in zip(order, models, all_tables, strict=True):
        entry, bins = entries[place], model.bins
        if isinstance(model.contexts, PixelContexts):
            symbols = np.ascontiguousarray(model.contexts.read(decoder, num_rows, coding).T).reshape(-1)
            numbers[place] = bins.numbers_at(symbols, bins.read_places(decoder, symbols), np.uint8)
        else:
            valid = valid_of(entry)
            if isinstance(model.contexts, PlaceContexts):
                table_index: NDArray[np.integer[Any]] | None = model.contexts.tables_at(entry["count"])
            else:
                table_index = _at_present(model.contexts.tables_at(tracks), valid)
            symbols = decoder.read(entry["count"], coding, table_index)
            numbers[place] = bins.numbers_at(symbols, bins.read_places(decoder, symbols))
            if not entry.get("shape"):
                tracks[place] = _track(symbols, len(bins), numbers[place], valid)
        if place != order[-1] and numbers.keys() >= missing:
            return numbers
    decoder.finish()
    return numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """What the tables of a block say of one column."""

    bins: Bins
    contexts: RowContexts | PlaceContexts | PixelContexts
    levels: NDArray[np.uint8]
    """(T, S)"""


def _models_from(
    tables: bytes, order: Sequence[int], entries: Sequence[Mapping[str, Any]], num_rows: int
) -> list[_Model]:
    """Of every column in `order`."""
    position = 0
    num_symbols_of: dict[int, int] = {}
    models = []
    for place in order:
        entry = entries[place]
        bins, position = Bins.from_bytes(tables, position)
        contexts: RowContexts | PlaceContexts | PixelContexts
        if "pixels" in entry:
            contexts, position = PixelContexts.from_bytes(entry["pixels"], len(bins), tables, position)
            if entry["count"] != num_rows * prod(contexts.shape):
                raise CorruptFileError("an image has other sides than its column; the file is damaged")
        elif "places" in entry:
            contexts, position = PlaceContexts.from_bytes(entry, tables, position)
        else:
            contexts, position = RowContexts.from_bytes(entry, num_symbols_of, tables, position)
        if not entry.get("shape"):
            num_symbols_of[place] = len(bins)
        size = contexts.num_tables * len(bins)
        levels = np.frombuffer(tables, np.uint8, size, position).reshape(-1, len(bins))
        models.append(_Model(bins=bins, contexts=contexts, levels=levels))
        position += size
    return models


def _row_parts(
    symbols: NDArray[np.uint8], num_symbols: int, table_index: NDArray[np.integer[Any]] | None, num_tables: int
) -> tuple[list[Part], NDArray[np.uint8]]:
    """The part of a column of one number a row, and the levels (T, S) of its tables."""
    key = symbols if table_index is None else table_index * np.int64(num_symbols) + symbols
    levels = levels_of(np.bincount(key, minlength=num_tables * num_symbols).reshape(num_tables, num_symbols))
    return [Part(symbols=symbols, tables=tables_from(levels), table_index=table_index)], levels


def _pixel_parts(
    symbols: NDArray[np.uint8], num_symbols: int, pixels: PixelContexts
) -> tuple[list[Part], NDArray[np.uint8]]:
    padded = padded_symbols(symbols, pixels.shape)
    table_index = pixels.tables_at(padded)
    counts = np.zeros(pixels.num_tables * num_symbols, np.int64)
    for tables, own in zip(table_index, padded, strict=False):
        counts += np.bincount(tables * np.int64(num_symbols) + own, minlength=len(counts))
    levels = levels_of(counts.reshape(pixels.num_tables, num_symbols))
    return pixels.parts(padded, table_index, tables_from(levels)), levels


def _at_present(table_index: NDArray[np.integer[Any]] | None, valid: Valid) -> NDArray[np.integer[Any]] | None:
    """The tables of the rows that are not null."""
    return table_index if table_index is None or valid is None else table_index[valid]


def _track(symbols: NDArray[np.uint8], num_symbols: int, numbers: NDArray[np.integer[Any]], valid: Valid) -> Track:
    """A column at every row."""
    own, present = symbols.astype(np.int64), numbers.astype(np.int64, copy=False)
    if valid is None:
        return Track(symbols=own, num_symbols=num_symbols, numbers=present)
    everywhere, at_all = np.full(len(valid), num_symbols, np.int64), np.zeros(len(valid), np.int64)
    everywhere[valid], at_all[valid] = own, present
    return Track(symbols=everywhere, num_symbols=num_symbols, numbers=at_all)


def _bits_of(part: Part) -> float:
    frequencies = part.tables.frequencies
    key = part.symbols.astype(np.int64)
    if part.table_index is not None:
        key += part.table_index.astype(np.int64) * frequencies.shape[1]
    counts = np.bincount(key, minlength=frequencies.size)
    return float(-(counts * np.log2(np.maximum(frequencies.reshape(-1), 1) / 4096)).sum())
