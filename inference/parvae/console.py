"""What verbs share: how they print (a table for people, JSON for programs) and how they fail (one sentence)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from parvae.errors import Error, SettingError

GROUP = "parvae.commands"
EXTRAS: Mapping[str, str] = {"parvae": "parquet", "parvae_pipeline": "train", "parvae_export": "export"}
"""Which extra brings the packages that the verbs of a room need."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for programs.")


class PlaceType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    """A local path, or a URL such as s3://bucket/folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or "://" not in value:
            return Path(value)
        from parvae.storage import place_of

        try:
            return place_of(value)
        except Error as error:
            raise click.ClickException(str(error)) from error


class Verb(click.Command):
    """A command whose errors are one sentence: exit code 2 for usage, 1 for the data, the model or a package."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingError as error:
            raise click.UsageError(str(error)) from error
        except Error as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(missing_extra(self.name or "", error)) from error
        except OSError as error:
            raise click.ClickException(str(error)) from error


def missing_extra(verb: str, error: ModuleNotFoundError) -> str:
    """Which pip command brings the package that a verb lacks."""
    rooms = {entry.name: entry.module.partition(".")[0] for entry in metadata.entry_points(group=GROUP)}
    extra = EXTRAS.get(rooms.get(verb, ""), "all")
    return f"vae {verb} needs {error.name}, which is not installed: pip install 'parvae[{extra}]'"


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Figures by name."""
    if as_json:
        click.echo(json.dumps(dict(result), default=str))
        return
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns."""
    texts = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(header))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:,.4f}".rstrip("0").rstrip(".")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
