"""Runs of the same data beside each other: by which settings they differ, and what they came to."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parvae.errors import DataError, listed
from parvae.schema import Schema
from parvae_pipeline.run_folder import RunFolder

HEADINGS = (
    "run",
    "settings",
    "overlap of columns",
    "error of pairs",
    "active dimensions",
    "negative ELBO",
    "distortion",
    "rate",
    "negative log-likelihood",
)


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run, what it modelled, and the facts of its report."""

    run: RunFolder
    schema: Schema
    facts: Mapping[str, Any]


def compare(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The figures of every run, and those of its settings that are not the same in all.

    Raises DataError when they model other columns.
    """
    first = [column.name for column in runs[0].schema.modelled]
    for other in runs[1:]:
        theirs = [column.name for column in other.schema.modelled]
        if theirs != first:
            raise DataError(
                f"the run in {other.run.path} models {listed(theirs)}, and the one in {runs[0].run.path} "
                f"{listed(first)}; nats of other columns cannot be compared: train on the same data"
            )
    settings = [_flat(dataclasses.asdict(each.run.settings())) for each in runs]
    differing = [key for key in settings[0] if len({repr(every[key]) for every in settings}) > 1]
    return [
        {
            "run": each.run.path.name,
            "settings": {key: every[key] for key in differing},
            **{key: each.facts[key] for key in ("negative_elbo_nats", "distortion_nats", "rate_nats", "num_steps")},
            "likelihood": each.facts["likelihood"],
            "num_active_units": each.facts["diagnosis"].get("num_active_units"),
            "mean_overlap": _mean([entry["overlap"] for entry in each.facts["marginals"]]),
            "mean_pair_error": _mean([abs(pair["real"] - pair["sampled"]) for pair in each.facts["pairs"]]),
        }
        for each, every in zip(runs, settings, strict=True)
    ]


def comparison_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line of HTML for every run; nothing for none."""
    if not entries:
        return ""
    lines = ""
    for entry in entries:
        told = ", ".join(f"{key} = {value}" for key, value in entry["settings"].items()) or "the same settings"
        figures = (
            (entry["mean_overlap"], ".1%"),
            (entry["mean_pair_error"], ".3f"),
            (entry["num_active_units"], ","),
            (entry["negative_elbo_nats"], ",.2f"),
            (entry["distortion_nats"], ",.2f"),
            (entry["rate_nats"], ",.2f"),
            (entry["likelihood"]["negative_log_likelihood_nats"], ",.2f"),
        )
        cells = "".join(
            f"<td class='number'>{'-' if value is None else format(value, form)}</td>" for value, form in figures
        )
        lines += f"<tr><th>{html.escape(entry['run'])}</th><td>{html.escape(told)}</td>{cells}</tr>"
    head = "".join(f"<th>{name}</th>" for name in HEADINGS)
    units = ""
    if any("model.likelihood" in entry["settings"] for entry in entries):
        units = " Nats of different likelihoods are not comparable: some are of densities, some of probabilities."
    return (
        "<p>How much of real and sampled columns overlaps, and by how much the association of pairs differs, on "
        f"average; nats a row held out.{units}</p>"
        f"<div class='wide'><table class='rows compared'><tr>{head}</tr>{lines}</table></div>"
    )


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{table}.{key}": value for table, entries in settings.items() for key, value in entries.items()}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
