"""Rows in and rows out of the codec: a mapping of arrays with numpy alone, Arrow tables where pyarrow is installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from parvae.errors import CorruptFileError, DataError, SettingError, listed
from parvae.vaez.bounds import Bound, Promise, parse_bounds
from parvae.vaez.codec import Codec
from parvae.vaez.columns import ColumnData, Numbers, Texts, texts_of
from parvae.vaez.container import Reader, Writer

if TYPE_CHECKING:
    from parvae.model import VAE

BLOCK_ROWS = 65_536
BLOCK_BYTES = 1 << 24
Batch = dict[str, ColumnData]


def compress(
    rows: Any,
    *,
    bounds: Mapping[str, Any] | None = None,
    block_rows: int = BLOCK_ROWS,
    effort: int = 2,
    model: VAE | None = None,
    carry_model: bool = False,
) -> bytes:
    """The bytes of a `.vaez` file that holds `rows`: a mapping of name to array, an Arrow table or a dataframe.

    Every column comes back bit by bit unless `bounds` says otherwise: {"price": 0.01, "rate": "pw:1e-4"}; see
    `parvae.vaez.bounds.Bound`. `effort` 1 is faster, 2 smaller.

    A `model` that was exported with a codec makes files smaller. Whoever reads them needs it too, unless the file is to
    carry the codec (`carry_model`), which pays for large ones.

    Raises DataError for a column that cannot be stored, SettingError for a bound that does not fit its column,
    BundleError when the model has no codec.
    """
    codec = codec_of(model, carry_model)
    if not isinstance(block_rows, int) or not 0 < block_rows <= 1 << 20:
        raise SettingError(f"block_rows is {block_rows!r}; it must be a whole number from 1 to 1,048,576")
    sink = io.BytesIO()
    if isinstance(rows, Mapping):
        batch, types = _from_mapping(rows)
        head: dict[str, Any] = {"numpy": types}
        batches = partial(_sliced, batch, block_rows)
        compress_to(sink, batches, head, bounds=bounds, effort=effort, codec=codec, carry=carry_model)
    else:
        from parvae.vaez import arrow_rows

        arrow_rows.compress_table(
            sink, rows, bounds=bounds, block_rows=block_rows, effort=effort, codec=codec, carry=carry_model
        )
    return sink.getvalue()


def decompress(
    blob: bytes,
    *,
    columns: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    salvage: bool = False,
    model: VAE | None = None,
) -> Any:
    """The rows of a `.vaez` file, in the form they came in: a mapping of arrays, or an Arrow table.

    `columns` and `blocks` choose a part, and only that part is decoded. Masked arrays stand for nulls in a mapping.
    `salvage` gives the whole blocks of a file that is cut short or damaged. `model` is the one that it was compressed
    with, if it was and does not carry it.

    Raises CorruptFileError when the file is damaged, DataError when it lacks a column, WrongModelError when it was
    compressed with another model.
    """
    reader = Reader(io.BytesIO(blob), salvage=salvage, codec=None if model is None else model.codec)
    batches = read_batches(reader, columns=columns, blocks=blocks, salvage=salvage)
    if "arrow" in reader.head:
        from parvae.vaez import arrow_rows

        return arrow_rows.table_from(reader.head, batches, columns)
    names = _chosen(reader, columns)
    found = list(batches)
    types = reader.head["numpy"]
    return {name: _to_array([batch[name] for batch in found], types[name]) for name in names}


def codec_of(model: VAE | None, carry: bool) -> Codec | None:
    """The codec to compress with.

    Raises BundleError when the model has none, SettingError when there is no model to carry.
    """
    if model is None:
        if carry:
            raise SettingError("the file shall carry its model, but none was given; give one, or leave that out")
        return None
    return model.require_codec()


def compress_to(
    sink: BinaryIO,
    batches: Callable[[], Iterable[Batch]],
    head: dict[str, Any],
    *,
    bounds: Mapping[str, Any] | None,
    effort: int,
    codec: Codec | None = None,
    carry: bool = False,
) -> dict[str, int]:
    """Write the batches as blocks; they are read twice when a bound refers to a column's range."""
    if effort not in (1, 2):
        raise SettingError(f"effort is {effort!r}; it must be 1 (faster) or 2 (smaller)")
    wanted = parse_bounds(bounds)
    first = next(iter(batches()))
    unknown = [name for name in wanted if name not in first and name != "*"]
    if unknown:
        raise SettingError(f"bounds name {listed(unknown)}, but the columns are {listed(first)}")
    settled = {name: _bound_for(name, column, wanted) for name, column in first.items()}
    if any(bound.promise is Promise.RANGE for bound in settled.values()):
        settled = _without_ranges(settled, batches())
    kept = [name for name, bound in settled.items() if bound.promise is not Promise.DROP]
    head = {**head, "columns": [{"name": name, "bound": str(settled[name])} for name in kept]}
    writer = Writer(sink, head, [settled[name] for name in kept], effort=effort, codec=codec, carry=carry)
    num_rows = plain_bytes = 0
    for batch in batches():
        columns = [batch[name] for name in kept]
        num_rows += len(columns[0]) if columns else 0
        plain_bytes += sum(len(column.plain()) for column in columns)
        writer.add(columns)
    return {"rows": num_rows, "plain_bytes": plain_bytes, "compressed_bytes": writer.finish()}


def read_batches(
    reader: Reader, *, columns: Sequence[str] | None = None, blocks: Sequence[int] | None = None, salvage: bool = False
) -> Iterator[Batch]:
    """The chosen columns of the chosen blocks, block by block."""
    names = [column["name"] for column in reader.head["columns"]]
    chosen = _chosen(reader, columns)
    numbers = range(len(reader.blocks)) if blocks is None else blocks
    for number in numbers:
        if not 0 <= number < len(reader.blocks):
            raise DataError(f"there is no block {number}; the file has {len(reader.blocks)}")
        try:
            found = reader.block(number, [names.index(name) for name in chosen])
        except CorruptFileError:
            if salvage:
                continue
            raise
        yield {name: found[names.index(name)] for name in chosen}


def _chosen(reader: Reader, columns: Sequence[str] | None) -> list[str]:
    names = [column["name"] for column in reader.head["columns"]]
    missing = [name for name in columns or [] if name not in names]
    if missing:
        raise DataError(f"the .vaez file has no column {listed(missing)}; it has {listed(names)}")
    return names if columns is None else list(columns)


def _bound_for(name: str, column: ColumnData, wanted: Mapping[str, Bound]) -> Bound:
    kind = column.values.dtype.kind if isinstance(column, Numbers) else ""
    bound = wanted.get(name)
    if bound is None:
        return wanted.get("*", Bound()) if kind == "f" else Bound()
    if bound.promise in (Promise.LOSSLESS, Promise.DROP) or kind == "f":
        return bound
    if kind in ("i", "u") and bound.promise in (Promise.ABSOLUTE, Promise.RANGE):
        return bound
    raise SettingError(
        f"bound {bound} of column {name!r} does not fit: integers take an absolute bound or one of their range, "
        "floats any, other columns lossless or drop"
    )


def _without_ranges(settled: Mapping[str, Bound], batches: Iterable[Batch]) -> dict[str, Bound]:
    """Bounds with every reference to a range replaced by the range over all rows."""
    names = [name for name, bound in settled.items() if bound.promise is Promise.RANGE]
    ends = dict.fromkeys(names, (np.inf, -np.inf))
    for batch in batches:
        for name in names:
            column = batch[name]
            assert isinstance(column, Numbers)
            present = column.values if column.valid is None else column.values[column.valid]
            finite = present[np.isfinite(present)].astype(np.float64)
            if finite.size:
                low, high = ends[name]
                ends[name] = min(low, float(finite.min())), max(high, float(finite.max()))
    return {name: bound.within(*ends.get(name, (0.0, 0.0))) for name, bound in settled.items()}


def _from_mapping(rows: Mapping[str, Any]) -> tuple[Batch, dict[str, str]]:
    batch: Batch = {}
    types: dict[str, str] = {}
    for name, given in rows.items():
        if not isinstance(name, str):
            raise DataError(f"a column is named {name!r}; names are text")
        array = given if isinstance(given, np.ma.MaskedArray) else np.asarray(given)
        batch[name], types[name] = _from_array(name, array)
        if len(batch[name]) != len(next(iter(batch.values()))):
            raise DataError(f"column {name!r} has {len(array)} rows, others have more or fewer; make them equal")
    if not batch:
        raise DataError("the rows have no columns; give a mapping of column name to array")
    return batch, types


def _from_array(name: str, array: Any) -> tuple[ColumnData, str]:
    if array.ndim == 0:
        raise DataError(f"column {name!r} is a single value; give one value a row")
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    values = np.ma.getdata(array)
    kind = values.dtype.kind
    if kind in "biuf" and values.dtype.itemsize <= 8:
        if mask is not None and mask.ndim > 1:
            raise DataError(f"column {name!r} masks single elements of vectors; fill them")
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return _numbers(values, mask), values.dtype.str
    if kind in "mM" and values.ndim == 1:
        return _numbers(values.view(np.int64), mask), values.dtype.str
    if kind in "OUS" and values.ndim == 1:
        rows = [None if mask is not None and mask[row] else value for row, value in enumerate(values.tolist())]
        for of_type in (str, bytes):
            if all(value is None or isinstance(value, of_type) for value in rows):
                raw = [value.encode() if isinstance(value, str) else value for value in rows]
                return texts_of(raw, is_text=of_type is str), "str" if of_type is str else "bytes"
    raise DataError(
        f"column {name!r} is an array of {values.dtype} with {values.ndim} dimensions; the codec takes "
        "booleans, integers, floats, dates, vectors of numbers, and text or bytes with None for null"
    )


def _numbers(values: Any, mask: Any) -> Numbers:
    if mask is None or not mask.any():
        return Numbers(values=values)
    values = values.copy()
    values[mask] = 0
    return Numbers(values=values, valid=~mask)


def rows_of_a_block(row_bytes: float, most: int = BLOCK_ROWS) -> int:
    """How many rows of so many bytes make a block."""
    return max(1, min(most, int(BLOCK_BYTES / max(1.0, row_bytes))))


def _sliced(batch: Batch, block_rows: int) -> Iterator[Batch]:
    num_rows = len(next(iter(batch.values())))
    row_bytes = sum(column.values[:1].nbytes if isinstance(column, Numbers) else 8 for column in batch.values())
    size = rows_of_a_block(row_bytes, block_rows)
    for first in range(0, max(1, num_rows), size):
        yield {name: _slice(column, slice(first, first + size)) for name, column in batch.items()}


def _slice(column: ColumnData, rows: slice) -> ColumnData:
    if isinstance(column, Numbers):
        return Numbers(values=column.values[rows], valid=None if column.valid is None else column.valid[rows])
    assert isinstance(column, Texts)
    levels = [*column.levels, None]
    return texts_of([levels[code] for code in column.codes[rows].tolist()], is_text=column.is_text)


def _to_array(parts: Sequence[ColumnData], type_name: str) -> Any:
    if type_name in ("str", "bytes"):
        found: list[Any] = []
        for part in parts:
            assert isinstance(part, Texts)
            levels: list[Any] = [level.decode() if type_name == "str" else level for level in part.levels]
            found += map([*levels, None].__getitem__, part.codes.tolist())
        return np.array([*found, None], dtype=object)[:-1]
    numbers = [part for part in parts if isinstance(part, Numbers)]
    if not numbers:
        return np.empty(0, type_name)
    values = np.concatenate([part.values for part in numbers]).astype(numbers[0].values.dtype.newbyteorder("="))
    values = values.view(type_name) if np.dtype(type_name).kind in "mM" else values
    if all(part.valid is None for part in numbers):
        return values
    valid = [np.ones(len(part), bool) if part.valid is None else part.valid for part in numbers]
    return np.ma.MaskedArray(values, mask=~np.concatenate(valid))
