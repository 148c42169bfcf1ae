"""The verbs that run a bundle: score, encode, reconstruct, sample, info, selftest, calibrate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from parvae.console import PlaceType, Verb, json_option, print_result, print_table
from parvae.scoring import DEFAULT_ALPHA, Scoring

if TYPE_CHECKING:
    from parvae.bulk import Outcome
    from parvae.model import VAE
    from parvae.storage import Place
    from parvae.stream import Transform
    from parvae.tally import Tally

model_argument = click.argument("model", type=click.Path())
data_argument = click.argument("data", nargs=-1, required=True)
output_option = click.option(
    "-o", "--output", required=True, type=PlaceType(), help="A folder, or a .parquet file for one input."
)
threads_option = click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads."
)


def scoring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `parvae.scoring.Scoring` takes."""
    for option in (
        click.option(
            "--explain",
            "num_explained",
            default=0,
            metavar="K",
            type=click.IntRange(min=0),
            help="Name the K columns most to blame for each row, with the value observed and the one expected.",
        ),
        click.option(
            "--fdr", type=float, metavar="RATE", help="Instead: share of a file's flagged rows that may be normal."
        ),
        click.option(
            "--alpha", type=float, help=f"Share of normal rows that may be flagged.  [default: {DEFAULT_ALPHA}]"
        ),
    ):
        command = option(command)
    return command


@click.command(cls=Verb)
@model_argument
@data_argument
@output_option
@scoring_options
@threads_option
@json_option
def score(
    model: str,
    data: Sequence[str],
    output: Place,
    alpha: float | None,
    fdr: float | None,
    num_explained: int,
    threads: int,
    as_json: bool,
) -> None:
    """Score every row of DATA by MODEL: score, p-value, and whether it is an anomaly.

    Columns that the model does not cover (keys, labels, others) are carried through.
    """
    from parvae.bulk import score_transform
    from parvae.model import load

    loaded = load(model)  # one thread a call: rows go to several calls at a time
    scoring = Scoring.chosen(
        loaded, alpha=alpha, discovery_rate=fdr, num_explained=num_explained, note=partial(click.echo, err=True)
    )
    _bulk(
        loaded,
        data,
        output,
        score_transform(loaded, alpha=scoring.alpha, num_explained=scoring.num_explained),
        verb="score",
        settings=scoring.settings(loaded),
        discovery_rate=scoring.discovery_rate,
        threads=threads,
        as_json=as_json,
    )


@click.command(cls=Verb)
@model_argument
@data_argument
@output_option
@click.option("--int8", is_flag=True, help="One byte a number, on the grid of MODEL (its steps are in the metadata).")
@threads_option
@json_option
def encode(model: str, data: Sequence[str], output: Place, int8: bool, threads: int, as_json: bool) -> None:
    """Write the latent code of every row of DATA as a list of float32."""
    from parvae.bulk import encode_transform
    from parvae.model import load

    loaded = load(model)
    transform = encode_transform(loaded, loaded.code_grid if int8 else None)
    settings = "int8" if int8 else ""
    _bulk(loaded, data, output, transform, verb="encode", settings=settings, threads=threads, as_json=as_json)


@click.command(cls=Verb)
@model_argument
@data_argument
@output_option
@threads_option
@json_option
def reconstruct(model: str, data: Sequence[str], output: Place, threads: int, as_json: bool) -> None:
    """Write DATA as MODEL expects it: every modelled column through encoder and decoder."""
    from parvae.bulk import reconstruct_transform
    from parvae.model import load

    loaded = load(model)
    _bulk(
        loaded,
        data,
        output,
        reconstruct_transform(loaded),
        verb="reconstruct",
        settings="",
        threads=threads,
        as_json=as_json,
    )


@click.command(cls=Verb)
@model_argument
@click.option("-n", "--num-rows", default=1000, show_default=True, type=click.IntRange(min=0), help="Rows to draw.")
@click.option("-o", "--output", required=True, type=PlaceType(), help="A .parquet file.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Same seed, same rows.")
@click.option("--pixel-noise", is_flag=True, help="Draw every pixel of images instead of taking its median.")
@threads_option
@json_option
def sample(model: str, num_rows: int, output: Place, seed: int, pixel_noise: bool, threads: int, as_json: bool) -> None:
    """Draw new rows from MODEL into one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from parvae.arrow import to_table
    from parvae.model import load
    from parvae.storage import write_whole

    loaded = load(model, threads=threads)
    table = to_table(loaded.schema, loaded.sample(num_rows, seed=seed, pixel_noise=pixel_noise))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"parvae.model_id": loaded.model_id, "parvae.seed": str(seed)}), sink)
    write_whole(output, sink.getvalue().to_pybytes())
    print_result({"rows": table.num_rows, "seed": seed, "output": str(output)}, as_json=as_json)


@click.command(cls=Verb)
@click.argument("file", type=click.Path())
@json_option
def info(file: str, as_json: bool) -> None:
    """Say what a bundle or a .vaez file holds: figures, columns, how it was made."""
    if file.endswith(".vaez"):
        from parvae.vaez.commands import describe as describe_vaez

        print_result(describe_vaez(file), as_json=as_json)
        return
    from parvae.bundle import read_bundle
    from parvae.selftest import describe

    bundle = read_bundle(file)
    print_result(describe(bundle), as_json=as_json)
    if not as_json:
        click.echo()
        columns = bundle.manifest["schema"]["columns"]
        rows = [(column["name"], column["role"], column["arrow_type"], column["reason"]) for column in columns]
        print_table(("column", "role", "type", "reason"), rows)


@click.command(cls=Verb)
@model_argument
@threads_option
@json_option
def selftest(model: str, threads: int, as_json: bool) -> None:
    """Replay the golden rows of MODEL: does this machine give the numbers that were verified at export?"""
    from parvae.bundle import read_bundle
    from parvae.selftest import replay, summarise

    checks = replay(read_bundle(model), threads=threads)
    print_result(summarise(checks), as_json=as_json)
    if not all(check.passed for check in checks):
        raise SystemExit(1)


@click.command(cls=Verb)
@model_argument
@data_argument
@click.option("-o", "--output", required=True, type=PlaceType(), help="The new bundle.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which rows of too many to keep."
)
@threads_option
@json_option
def calibrate(model: str, data: Sequence[str], output: Place, seed: int, threads: int, as_json: bool) -> None:
    """Write MODEL anew with the p-values of DATA: normal rows that training did not see. The graphs stay the same."""
    from parvae.bundle import read_bundle
    from parvae.files import find_files
    from parvae.model import VAE
    from parvae.recalibration import recalibrated, score_files
    from parvae.storage import write_whole

    bundle = read_bundle(model)
    scores = score_files(VAE(bundle, threads=threads), find_files(data))
    content = recalibrated(bundle, scores, seed=seed)
    write_whole(output, content)
    loaded = VAE(read_bundle(content))
    print_result(
        {
            "bundle": str(output),
            "model_id": loaded.model_id,
            "rows": len(scores),
            "smallest_alpha": loaded.smallest_alpha,
        },
        as_json=as_json,
    )


def _bulk(
    vae: VAE,
    data: Sequence[str],
    output: Place,
    transform: Transform,
    *,
    verb: str,
    settings: str,
    threads: int,
    as_json: bool,
    discovery_rate: float | None = None,
) -> None:
    """Run a transform over files and print what became of them."""
    from parvae.bulk import plan, run
    from parvae.files import find_files

    stamp = {"parvae.verb": verb, "parvae.settings": settings, "parvae.model_id": vae.model_id}
    tasks = plan(find_files(data), output)
    outcomes = run(tasks, transform, stamp=stamp, output=output, threads=threads, discovery_rate=discovery_rate)
    print_outcomes(vae, outcomes, output, as_json=as_json)


def print_outcomes(vae: VAE, outcomes: Iterable[Outcome], output: Place, *, as_json: bool) -> None:
    """Print each failure as it comes and the totals at the end; exit with 1 when a file failed."""
    from parvae.bulk import ERRORS_NAME
    from parvae.tally import Tally

    started_s = time.monotonic()
    totals: dict[str, Any] = {"files": 0, "rows": 0, "already_done": 0, "failed": 0}
    counts, num_new_rows = Tally.empty(), 0
    for outcome in outcomes:
        totals["files"] += 1
        totals["rows"] += outcome.num_rows
        totals["already_done"] += outcome.skipped
        totals["failed"] += outcome.error is not None
        num_new_rows += 0 if outcome.skipped else outcome.num_rows
        counts += outcome.tally
        if outcome.error is not None:
            click.echo(f"failed: {outcome.error}", err=True)
    elapsed_s = time.monotonic() - started_s
    if num_new_rows:
        totals["rows_per_s"] = round(num_new_rows / max(elapsed_s, 1e-9))
    if counts.columns:
        totals["flagged"] = counts.num_flagged
    totals["output"] = str(output)
    columns = _column_table(vae, counts)
    print_result({**totals, "columns": columns} if as_json and columns else totals, as_json=as_json)
    if columns and not as_json:
        click.echo()
        cells = [[name, *("" if value is None else value for value in row.values())] for name, row in columns.items()]
        print_table(["column", *(name.replace("_", " ") for name in next(iter(columns.values())))], cells)
    if totals["failed"]:
        click.echo(f"{totals['failed']} of {totals['files']} files failed; they are listed in {ERRORS_NAME}", err=True)
        raise SystemExit(1)


def _column_table(vae: VAE, counts: Tally) -> dict[str, dict[str, Any]]:
    """What was counted of each modelled column, beside what training saw."""
    from parvae.tally import drift, drift_nats

    table = {}
    for column in vae.schema.modelled:
        if counts.num_rows and column.name in counts.columns:
            found = counts.columns[column.name]
            table[column.name] = {
                "nulls": found.num_nulls,
                "nulls_expected": round(column.num_nulls / vae.schema.num_rows * counts.num_rows),
                "unseen": found.num_unseen,
                "drift_sd": drift(column, found),
                "drift_nats": drift_nats(column, found, counts.num_rows, vae.manifest["metrics"]),
            }
    return table
