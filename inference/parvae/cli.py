"""The command `vae`: verbs come from the rooms through the entry-point group `parvae.commands`, loaded when needed."""

from __future__ import annotations

from importlib import metadata

import click

from parvae import __version__
from parvae.console import GROUP


class VerbsByEntryPoint(click.Group):
    """Finds its commands among the entry points of installed packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(metadata.entry_points(group=GROUP).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = metadata.entry_points(group=GROUP, name=cmd_name)
        return next(iter(found)).load() if found else None


@click.group(cls=VerbsByEntryPoint, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="parvae")
def vae() -> None:
    """Train a variational autoencoder on Parquet, export it, and run it anywhere."""
