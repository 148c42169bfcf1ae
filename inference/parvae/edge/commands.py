"""The verbs of whoever deploys a bundle: unpack, bench."""

from __future__ import annotations

import click

from parvae.console import Verb, json_option, print_result


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder to write; it must be new.")
@json_option
def unpack(model: str, output: str, as_json: bool) -> None:
    """Write MODEL as plain files: its graphs, manifest (with the schema) and golden rows, for other languages."""
    from parvae.bundle import read_bundle
    from parvae.edge.unpack import unpack as unpack_bundle

    names = unpack_bundle(read_bundle(model), output)
    print_result({"folder": output, "files": ", ".join(names)}, as_json=as_json)
