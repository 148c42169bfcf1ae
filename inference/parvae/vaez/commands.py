"""The verbs compress and decompress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parvae.console import Verb, json_option, print_result
from parvae.errors import CorruptFileError, SettingError

if TYPE_CHECKING:
    from parvae.vaez.codec import Codec


@click.command(cls=Verb)
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A .vaez file.")
@click.option(
    "--bound", "bounds", multiple=True, metavar="COLUMN=BOUND", help="0.01, rel:0.001, pw:1e-4, digits:5, drop."
)
@click.option("--effort", default=2, show_default=True, type=click.IntRange(1, 2), help="1 is faster, 2 smaller.")
@click.option("--model", type=click.Path(), help="A model.vae with a codec: smaller files, which need it to be read.")
@click.option("--carry-model", is_flag=True, help="Put the codec of the model into the file.")
@click.option("--verify", is_flag=True, help="Read the written file again and compare it with DATA.")
@json_option
def compress(
    data: Sequence[str],
    output: Path,
    bounds: Sequence[str],
    effort: int,
    model: str | None,
    carry_model: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Compress DATA (Parquet) into one .vaez file, without loss unless a bound says otherwise.

    COLUMN "*" stands for every column of floats that has no bound of its own.
    """
    from parvae.files import find_files
    from parvae.model import load
    from parvae.vaez.arrow_rows import compress_files
    from parvae.vaez.rows import codec_of

    named = dict(_bound(text) for text in bounds)
    codec = codec_of(None if model is None else load(model), carry_model)
    files = find_files(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            figures: dict[str, Any] = dict(
                compress_files(sink, files, bounds=named, effort=effort, codec=codec, carry=carry_model)
            )
            sink.flush()
            os.fsync(sink.fileno())
        if verify:
            figures["verified"] = _verify(temporary, files, codec)
        for file in files:
            file.require_unchanged()
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    ratio = figures["plain_bytes"] / max(1, figures["compressed_bytes"])
    print_result({**figures, "ratio": ratio, "output": str(output)}, as_json=as_json)


@click.command(cls=Verb)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A .parquet file.")
@click.option("--column", "columns", multiple=True, help="Only this column; may be given more than once.")
@click.option("--model", type=click.Path(), help="The model.vae that FILE was compressed with, if it was.")
@click.option("--salvage", is_flag=True, help="Of a damaged file, write the blocks that are whole.")
@json_option
def decompress(
    file: Path, output: Path, columns: Sequence[str], model: str | None, salvage: bool, as_json: bool
) -> None:
    """Write the rows of FILE (.vaez) as Parquet."""
    import pyarrow.parquet as pq

    from parvae.model import load
    from parvae.vaez.arrow_rows import schema_from, to_table
    from parvae.vaez.container import Reader
    from parvae.vaez.rows import read_batches

    chosen = list(columns) or None
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    num_rows = 0
    try:
        with file.open("rb") as source:
            reader = Reader(source, salvage=salvage, codec=None if model is None else load(model).codec)
            if "arrow" not in reader.head:
                raise CorruptFileError(f"{file} holds arrays, not an Arrow table; read it with parvae.decompress")
            batches = read_batches(reader, columns=chosen, salvage=salvage)
            first = next(batches, None)
            schema = schema_from(reader.head, chosen)
            with pq.ParquetWriter(temporary, schema) as writer:
                while first is not None:
                    table = to_table(first, schema)
                    num_rows += table.num_rows
                    writer.write_table(table)
                    first = next(batches, None)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    print_result({"rows": num_rows, "output": str(output)}, as_json=as_json)


def describe(file: str) -> dict[str, Any]:
    """What a .vaez file says of itself."""
    from parvae.vaez.container import NO_CODEC, Reader

    with Path(file).open("rb") as source:
        reader = Reader(source)
        types = reader.head.get("types") or reader.head.get("numpy", {})
        columns = [
            (column["name"], types.get(column["name"], "?"), column["bound"]) for column in reader.head["columns"]
        ]
        return {
            "format": reader.major,
            "rows": reader.num_rows,
            "blocks": len(reader.blocks),
            "bytes": reader.num_bytes,
            "codec": "none" if reader.codec_id == NO_CODEC else reader.codec_id.hex()[:12],
            "carries_codec": reader.carries_codec,
            "columns": ", ".join(f"{name}: {kind} ({bound})" for name, kind, bound in columns),
        }


def _bound(text: str) -> tuple[str, str]:
    name, found, bound = text.rpartition("=")
    if not found or not name:
        raise SettingError(f"--bound {text!r} names no column; write COLUMN=BOUND, for example price=0.01")
    return name, bound


def _verify(path: Path, files: Sequence[Any], codec: Codec | None) -> bool:
    """Whether every value of the file is what its bound promises of DATA; anything else is an error."""
    from parvae.vaez.arrow_rows import file_batches
    from parvae.vaez.block import keeps
    from parvae.vaez.bounds import Bound
    from parvae.vaez.container import Reader
    from parvae.vaez.rows import read_batches

    with path.open("rb") as source:
        reader = Reader(source, codec=codec)
        bounds = {column["name"]: Bound.parse(column["bound"]) for column in reader.head["columns"]}
        again = read_batches(reader)
        for wanted in (batch for file in files for batch in file_batches(file)):
            found = next(again)
            for name, bound in bounds.items():
                if not keeps(wanted[name], found[name], bound):
                    raise CorruptFileError(f"column {name!r} does not come back as promised; nothing was written")
    return True
