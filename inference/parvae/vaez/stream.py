"""The stream of a block: the symbols of all its columns of whole numbers, each in its context, and their tables.

A column of one number a row finds its context in the columns decoded before it (`contexts`), an element of a vector in
its place (`places`), one of an image in its neighbours (`pixels`). Where a codec knows a column, its network may take
the place of contexts and tables.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import Decoder, Part, SplitPart, Stream, encode, lanes_for
from parvae.vaez.bins import Bins, all_tables_from, even_bins, levels_of, tables_from
from parvae.vaez.contexts import choose_parents
from parvae.vaez.known import Known, KnownRows, Valid
from parvae.vaez.parents import Symbol, Track
from parvae.vaez.pixels import PixelContexts, padded_symbols
from parvae.vaez.places import PlaceContexts
from parvae.vaez.row_contexts import RowContexts, fit_rows
from parvae.vaez.splits import read_splits, split_parts

Taken = tuple[NDArray[np.uint8], NDArray[np.unsignedinteger[Any]]]
"""Numbers as symbols of their bins, and places inside these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """The numbers of a column and how they become symbols."""

    numbers: NDArray[np.integer[Any]]
    """(count,) what is not null; of an image (n * d,)."""
    bins: Bins
    valid: Valid = None
    within: PlaceContexts | PixelContexts | None = None
    """Contexts inside a row that holds more than one number: such columns have no parents and are none."""
    known: Known | None = None
    """What the codec knows of the column."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A stream, the tables it needs, and what the facts of the block must say of it."""

    stream: Stream
    tables: bytes
    order: list[int]
    entries: dict[int, dict[str, Any]]
    """By column."""


def encode_columns(coded: Mapping[int, Coded], num_rows: int) -> Encoded:
    """One stream for all columns."""
    symbols = {place: one.bins.symbols_of(one.numbers) for place, one in coded.items()}
    tracks = {
        place: _track(symbols[place][0], len(one.bins), one.numbers, one.valid)
        for place, one in coded.items()
        if one.within is None
    }
    by_codec = sorted((one.known.column, place) for place, one in coded.items() if one.known is not None)
    known_rows = KnownRows(num_rows)
    written: dict[int, _Written] = {}
    for _, place in by_codec:  # first, in the order of the codec: it tells a column by those before it
        one = coded[place]
        assert one.known is not None
        found = [_by_contexts(one, symbols[place], tracks[place], (), {name: tracks[name] for name in written})]
        if one.known.is_told:
            found += _by_networks(one, known_rows)
        best = written[place] = min(found, key=_Written.num_bits)
        if best.bins is not one.bins:
            tracks[place] = _track(best.bins.symbols_of(one.numbers)[0], len(best.bins), one.numbers, one.valid)
        known_rows.add(one.known, one.numbers, one.valid)
    order, parents = choose_parents(tracks)
    for place in order:
        if place not in written:
            before = {name: tracks[name] for name in written}
            written[place] = _by_contexts(coded[place], symbols[place], tracks[place], parents[place], before)
    for place, one in coded.items():
        if place not in written:
            written[place] = _within_rows(one, symbols[place])
    parts = [part for each in written.values() for part in each.parts]
    num_symbols = sum(len(part.symbols) for part in parts)
    stream = encode(parts, lanes_for(sum(part.num_bits() for part in parts), num_symbols))
    return Encoded(
        stream=stream,
        tables=b"".join(each.tables for each in written.values()),
        order=list(written),
        entries={place: each.entry for place, each in written.items()},
    )


def decode_columns(
    decoder: Decoder,
    tables: bytes,
    order: Sequence[int],
    entries: Sequence[Mapping[str, Any]],
    num_rows: int,
    valid_of: Callable[[Mapping[str, Any]], Valid],
    wanted: Collection[int],
    known_of: Callable[[int], Known | None],
) -> dict[int, NDArray[np.integer[Any]]]:
    """The numbers of the columns in `order`, up to the last one that is wanted.

    Raises CorruptFileError when the stream does not end as it should.
    """
    models = _models_from(tables, order, entries, num_rows)
    missing = set(wanted).intersection(order)
    numbers: dict[int, NDArray[np.integer[Any]]] = {}
    tracks: dict[int, Track] = {}
    known_rows = KnownRows(num_rows)
    all_tables = all_tables_from([model.levels for model in models if model.contexts is not None])
    for place, model in zip(order, models, strict=True):
        entry, bins = entries[place], model.bins
        if isinstance(model.contexts, PixelContexts):
            symbols = np.ascontiguousarray(model.contexts.read(decoder, num_rows, next(all_tables)).T).reshape(-1)
            numbers[place] = bins.numbers_at(symbols, bins.read_places(decoder, symbols), np.uint8)
        else:
            valid = valid_of(entry)
            known = known_of(place)
            if model.contexts is None:
                if known is None:
                    raise CorruptFileError(f"column {place} needs a codec that does not know it; the file is damaged")
                symbols = read_splits(decoder, known_rows.mixture(known, bins, valid), entry["count"])
            else:
                if isinstance(model.contexts, PlaceContexts):
                    table_index: NDArray[np.integer[Any]] | None = model.contexts.tables_at(entry["count"])
                else:
                    table_index = _at_present(model.contexts.tables_at(tracks), valid)
                symbols = decoder.read(entry["count"], next(all_tables), table_index)
            numbers[place] = bins.numbers_at(symbols, bins.read_places(decoder, symbols))
            if not entry.get("shape"):
                tracks[place] = _track(symbols, len(bins), numbers[place], valid)
            if known is not None:
                known_rows.add(known, numbers[place], valid)
        if place != order[-1] and numbers.keys() >= missing:
            return numbers
    decoder.finish()
    return numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """What the tables of a block say of one column."""

    bins: Bins
    contexts: RowContexts | PlaceContexts | PixelContexts | None
    """None where the codec takes their place."""
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
        contexts: RowContexts | PlaceContexts | PixelContexts | None
        if "known" in entry:
            contexts = None
        elif "pixels" in entry:
            contexts, position = PixelContexts.from_bytes(entry["pixels"], len(bins), tables, position)
            if entry["count"] != num_rows * prod(contexts.shape):
                raise CorruptFileError("an image has other sides than its column; the file is damaged")
        elif "places" in entry:
            contexts, position = PlaceContexts.from_bytes(entry, tables, position)
        else:
            contexts, position = RowContexts.from_bytes(entry, num_symbols_of, tables, position)
        if not entry.get("shape"):
            num_symbols_of[place] = len(bins)
        size = contexts.num_tables * len(bins) if contexts is not None else 0
        levels = np.frombuffer(tables, np.uint8, size, position).reshape(-1, len(bins))
        models.append(_Model(bins=bins, contexts=contexts, levels=levels))
        position += size
    return models


@dataclass(frozen=True, kw_only=True, eq=False)
class _Written:
    """A column as it stands in the stream and its tables."""

    bins: Bins
    parts: Sequence[Part | SplitPart]
    tables: bytes
    entry: dict[str, Any]

    def num_bits(self) -> float:
        """About what it takes."""
        return sum(part.num_bits() for part in self.parts) + 8 * len(zlib.compress(self.tables))


def _by_contexts(
    one: Coded, taken: Taken, track: Track, parents: Sequence[Symbol], before: Mapping[int, Track]
) -> _Written:
    """A column of one number a row in the context of those before it."""
    symbols, places = taken
    contexts = fit_rows(track, [parent for parent in parents if parent.column in before], before)
    table_index = _at_present(contexts.tables_at(before), one.valid)
    part, levels = _row_part(symbols, len(one.bins), table_index, contexts.num_tables)
    return _Written(
        bins=one.bins,
        parts=[part, *one.bins.place_parts(symbols, places)],
        tables=one.bins.to_bytes() + contexts.to_bytes() + levels.tobytes(),
        entry=contexts.facts(),
    )


def _by_networks(one: Coded, known_rows: KnownRows) -> list[_Written]:
    """A column by the networks of the codec, in bins of its own and in even ones, which take no space to describe."""
    assert one.known is not None
    found = []
    for bins in (one.bins, even_bins(one.numbers)):
        symbols, places = bins.symbols_of(one.numbers)
        try:
            mixture = known_rows.mixture(one.known, bins, one.valid)
        except CorruptFileError:  # they do not rise: a number stands for an infinite value
            continue
        parts: list[Part | SplitPart] = [*split_parts(mixture, symbols), *bins.place_parts(symbols, places)]
        found.append(_Written(bins=bins, parts=parts, tables=bins.to_bytes(), entry={"known": 1}))
    return found


def _within_rows(one: Coded, taken: Taken) -> _Written:
    """A column of several numbers a row."""
    symbols, places = taken
    assert one.within is not None
    parts: Sequence[Part]
    if isinstance(one.within, PixelContexts):
        parts, levels = _pixel_parts(symbols, len(one.bins), one.within)
    else:
        table_index = one.within.tables_at(len(symbols))
        part, levels = _row_part(symbols, len(one.bins), table_index, one.within.num_tables)
        parts = [part]
    return _Written(
        bins=one.bins,
        parts=[*parts, *one.bins.place_parts(symbols, places)],
        tables=one.bins.to_bytes() + one.within.to_bytes() + levels.tobytes(),
        entry=one.within.facts(),
    )


def _row_part(
    symbols: NDArray[np.uint8], num_symbols: int, table_index: NDArray[np.integer[Any]] | None, num_tables: int
) -> tuple[Part, NDArray[np.uint8]]:
    """The part of a column whose rows have tables, and the levels (T, S) of these."""
    key = symbols if table_index is None else table_index * np.int64(num_symbols) + symbols
    levels = levels_of(np.bincount(key, minlength=num_tables * num_symbols).reshape(num_tables, num_symbols))
    return Part(symbols=symbols, tables=tables_from(levels), table_index=table_index), levels


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
