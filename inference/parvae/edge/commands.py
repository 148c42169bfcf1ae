"""The verbs of whoever deploys a bundle: unpack, bench."""

from __future__ import annotations

import dataclasses

import click

from parvae.console import Verb, json_option, print_result, print_table


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


@click.command(cls=Verb)
@click.argument("model", type=click.Path())
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Calls at a time.")
@click.option(
    "--batch-rows", default=1024, show_default=True, type=click.IntRange(min=1), help="Rows of a call for rows/s."
)
@click.option("--seconds", "budget_s", default=1.0, show_default=True, type=float, help="Time for each measurement.")
@json_option
def bench(model: str, threads: int, batch_rows: int, budget_s: float, as_json: bool) -> None:
    """Time MODEL on this machine: latency of single rows, rows/s of larger calls."""
    from parvae.bundle import read_bundle
    from parvae.edge.bench import machine, measure

    bundle = read_bundle(model)
    speeds = measure(bundle, threads=threads, batch_rows=batch_rows, budget_s=budget_s)
    facts = {"model_id": bundle.manifest["model_id"], "threads": threads, "batch_rows": batch_rows, **machine()}
    rows = {speed.verb: dataclasses.asdict(speed) for speed in speeds}
    print_result({**facts, "verbs": rows} if as_json else facts, as_json=as_json)
    if not as_json:
        click.echo()
        header = [name.replace("_", " ") for name in next(iter(rows.values()))]
        print_table(header, [list(row.values()) for row in rows.values()])
