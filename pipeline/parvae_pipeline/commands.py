"""The verbs `train` and `report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parvae.console import PlaceType, Verb, json_option, print_result, print_table
from parvae.errors import SettingError

if TYPE_CHECKING:
    from parvae.storage import Place
    from parvae_pipeline.config import RunSettings
    from parvae_pipeline.progress import Report
    from parvae_pipeline.train import Plan

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@click.command(cls=Verb)
@click.argument("data", nargs=-1)
@click.option("-o", "--output", "folder", required=True, type=PlaceType(), help="The run folder, here or in a bucket.")
@click.option("--config", type=click.Path(), help="Settings in TOML, like the run.toml of a run folder.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. model.width=256.")
@click.option(
    "--budget", metavar="TIME", help="Wall time for the run: 90s, 10m, 2h.  [default: ~100 epochs, at most 30m]"
)
@click.option("--columns", default="", metavar="NAME:ROLE,...", help="Roles that overrule what the data suggest.")
@click.option("--label", help="A column to carry through, never to model.")
@click.option("--contaminated", is_flag=True, help="The rows hold anomalies, which must not be learned.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Ray workers to train on.")
@click.option(
    "--cpus-per-worker", default=1, show_default=True, type=click.IntRange(min=1), help="CPUs of each worker."
)
@click.option("--gpus", is_flag=True, help="One GPU for each worker.")
@click.option("--address", help="A running Ray cluster: auto, ray://HOST:10001.  [default: one of its own, if any]")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, with its settings.")
@json_option
def train(
    data: Sequence[str],
    folder: Place,
    config: str | None,
    assignments: Sequence[str],
    budget: str | None,
    columns: str,
    label: str | None,
    contaminated: bool,
    workers: int,
    cpus_per_worker: int,
    gpus: bool,
    address: str | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a variational autoencoder on DATA: Parquet files, folders, globs or URLs.

    The same command again resumes a run that was stopped. With one worker and no address everything happens in this
    process, on a GPU where there is one, and Ray is not started.
    """
    settings = _settings(data, folder, config, assignments, budget, columns, label, contaminated, resume)
    if workers > 1 or gpus or address is not None:
        from parvae_pipeline.cluster import ClusterSettings, train_on_cluster

        cluster = ClusterSettings(num_workers=workers, cpus_per_worker=cpus_per_worker, gpus=gpus, address=address)
        result = train_on_cluster(settings, folder, cluster, log=lambda line: None if as_json else click.echo(line))
    else:
        from parvae_pipeline.train import train as run_training

        result = run_training(
            settings,
            folder,
            announce=lambda plan: None if as_json else _print_plan(plan),
            report=lambda report: None if as_json else _print_report(report),
            note=lambda message: None if as_json else click.echo(message),
        )
    if not as_json:
        click.echo()
    print_result(
        {
            "negative_elbo_nats": result.negative_elbo_nats,
            "rate_nats": result.rate_nats,
            "distortion_nats": result.distortion_nats,
            "steps": result.num_steps,
            "skipped_steps": result.num_skipped_steps,
            "seconds": round(result.elapsed_s, 1),
            "training_rows": result.num_training_rows,
            "held_out_rows": result.num_held_out_rows,
            "checkpoint": str(result.checkpoint_path),
        },
        as_json=as_json,
    )
    if not as_json:
        click.echo(f"next: vae export {result.checkpoint_path}")


def parse_duration(text: str) -> float:
    """Seconds in "90s", "10m", "2h" or a plain number of seconds.

    >>> parse_duration("10m")
    600.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise SettingError(f"--budget {text}: write a time like 90s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def _settings(
    data: Sequence[str],
    folder: Place,
    config: str | None,
    assignments: Sequence[str],
    budget: str | None,
    columns: str,
    label: str | None,
    contaminated: bool,
    resume: bool,
) -> RunSettings:
    """Defaults, then the file, then --set, then the options."""
    from parvae_pipeline.config import RunSettings, merged, parse_assignment, read_toml
    from parvae_pipeline.roles import parse_overrides
    from parvae_pipeline.run_folder import RunFolder

    if resume:
        if data or config or assignments or budget or columns or label or contaminated:
            raise SettingError("--resume takes its settings from the run folder; leave out the others")
        return RunFolder(folder).settings()
    options: dict[str, Any] = {}
    if data:
        options["data.paths"] = [path if "://" in path else str(Path(path).absolute()) for path in data]
    if columns:
        options["data.columns"] = parse_overrides(columns)
    if label is not None:
        options["data.label"] = label
    if contaminated:
        options["train.contaminated"] = True
    if budget is not None:
        options["train.budget_s"] = parse_duration(budget)
    document = merged(read_toml(config) if config else {}, dict(map(parse_assignment, assignments)))
    settings = RunSettings.from_mapping(merged(document, options))
    if not settings.data.paths:
        raise SettingError("no DATA given: name a Parquet file, a folder, a glob or a URL")
    return settings


def _print_plan(plan: Plan) -> None:
    print_table(
        ("column", "role", "type", "reason"),
        [(column.name, column.role.value, column.arrow_type, column.reason) for column in plan.schema],
    )
    click.echo()
    resumed = f", resumed at step {plan.resumed_at_step:,}" if plan.resumed_at_step else ""
    architecture = plan.architecture
    maps = f" of {architecture.channels} feature maps" if architecture.network == "image" else ""
    reading = "streamed every epoch" if plan.is_streamed else "decoded once into memory"
    click.echo(
        f"{plan.num_training_rows:,} rows to train on ({reading}) and {plan.num_held_out_rows:,} held out, "
        f"from {plan.num_files} files; {architecture.network} network{maps}, {plan.num_weights:,} weights, "
        f"latent size {architecture.latent_size}, batch size {plan.batch_size}{resumed}"
    )
    ignored = [column for column in plan.schema if column.role.value == "ignored" and "--columns" not in column.reason]
    for column in ignored:
        click.echo(f"warning: column {column.name!r} is ignored: {column.reason}", err=True)
    from parvae_pipeline.roles import LABEL_WARNING

    for column in plan.schema:
        if LABEL_WARNING in column.reason:
            click.echo(
                f"warning: column {column.name!r} is {LABEL_WARNING}; --label {column.name} keeps it out", err=True
            )


def _print_report(report: Report) -> None:
    progress, validation = report.progress, report.validation
    skipped = f", {progress.num_skipped} skipped" if progress.num_skipped else ""
    click.echo(
        f"step {progress.step:>7,} of {progress.total_steps:,}: {validation.negative_elbo_nats:.3f} nats a row "
        f"held out (distortion {validation.distortion_nats:.3f} + rate {validation.rate_nats:.3f}), "
        f"{report.rows_per_s:,.0f} rows/s{skipped}{' *' if report.is_best else ''}"
    )


@click.command(cls=Verb)
@click.argument("folder", metavar="RUN", type=click.Path())
@click.option("--beside", multiple=True, metavar="RUN", help="Compare with another run of the same data; repeatable.")
@json_option
def report(folder: str, beside: Sequence[str], as_json: bool) -> None:
    """Write report.html (one page, no other file) and report.json into the folder of a RUN."""
    from parvae_pipeline.report import write_report

    path, facts = write_report(folder, beside=beside)
    figures = {name: facts[name] for name in ("negative_elbo_nats", "rate_nats", "distortion_nats")}
    print_result({**figures, **facts["likelihood"], "report": str(path)}, as_json=as_json)
