"""The report of a run: report.json for programs and report.html for people, one page without script or other file."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parvae.errors import DataError
from parvae.rows import Arrays
from parvae.schema import CategoryFacts, ImageFacts, NumericFacts, Role, VectorFacts
from parvae.storage import Place, write_whole
from parvae_pipeline.charts import bar_chart, image_grid, legend, line_chart, scatter_chart
from parvae_pipeline.checkpoint import Checkpoint, read_checkpoint
from parvae_pipeline.comparison import ComparedRun, compare, comparison_table
from parvae_pipeline.diagnosis import Finding
from parvae_pipeline.evaluate import estimate_likelihood, posteriors
from parvae_pipeline.marginals import Marginal, Pair, compare_rows
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.page import page
from parvae_pipeline.reader import select
from parvae_pipeline.run_folder import RunFolder

LIKELIHOOD_SAMPLES, LIKELIHOOD_ROWS = 1_000, 100
NUM_IMAGES, NUM_TRAVERSED, TRAVERSAL_STEPS = 20, 6, 9
QUANTILES = (0.01, 0.99)
"""Ends of a traversal: of the codes of real rows, where the decoder has seen something."""
NUM_MARGINALS = 24


def write_report(
    folder: str | Place, *, beside: Sequence[str | Place] = (), seed: int = 0
) -> tuple[Place, dict[str, Any]]:
    """Write report.html and report.json into the run folder; returns the path of the page and what report.json holds.

    The page also shows how the runs `beside` it came out, and by which settings they differ.

    Raises SettingError when there is no run, BundleError when its checkpoint cannot be read, DataError when the
    checkpoint holds no held-out rows to look at, or another run is of other columns.
    """
    run = RunFolder(folder)
    checkpoint = _checkpoint(run)
    records = run.metrics()
    facts = report_facts(checkpoint, records, seed=seed)
    if beside:
        compared = [ComparedRun(run=run, schema=checkpoint.schema, facts=facts)]
        for other in map(RunFolder, beside):
            found = _checkpoint(other)
            others_facts = report_facts(found, other.metrics(), seed=seed)
            compared.append(ComparedRun(run=other, schema=found.schema, facts=others_facts))
        facts["beside"] = compare(compared)
    sections = _sections(checkpoint, [record for record in records if "event" not in record], facts, seed=seed)
    write_whole(run.path / "report.json", (json.dumps(facts, indent=1) + "\n").encode())
    path = run.path / "report.html"
    write_whole(path, page(f"Report of {run.path.name}", sections).encode())
    return path, facts


def _checkpoint(run: RunFolder) -> Checkpoint:
    run.settings()  # says so when there is no run
    checkpoint = read_checkpoint(run.checkpoint_path)
    if not checkpoint.reservoir:
        raise DataError(
            f"{run.checkpoint_path} holds no rows (data.reservoir_rows is 0), and a report shows rows; "
            "train with data.reservoir_rows above 0 where that is allowed"
        )
    return checkpoint


def report_facts(checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """Everything the page says in figures."""
    model, metrics, rows = checkpoint.model, checkpoint.metrics, _as_own(checkpoint.reservoir)
    likelihood = estimate_likelihood(
        model, select(rows, slice(0, LIKELIHOOD_ROWS)), num_samples=LIKELIHOOD_SAMPLES, seed=seed
    )
    diagnosis = dict(metrics.get("diagnosis", {}))
    marginals, pairs = compare_rows(model.schema, rows, _sampled(model, len(next(iter(rows.values()))), seed=seed))
    return {
        "num_rows": checkpoint.schema.num_rows,
        "architecture": dataclasses.asdict(model.architecture),
        "num_weights": sum(parameter.numel() for parameter in model.parameters()),
        "num_steps": metrics["num_steps"],
        "negative_elbo_nats": metrics["negative_elbo_nats"],
        "rate_nats": metrics["rate_nats"],
        "distortion_nats": metrics["distortion_nats"],
        "column_nats": metrics["column_nats"],
        "likelihood": dataclasses.asdict(likelihood),
        "diagnosis": diagnosis,
        "events": [dict(record) for record in records if "event" in record],
        "marginals": [{"name": entry.name, "overlap": entry.overlap} for entry in marginals],
        "pairs": [dataclasses.asdict(pair) for pair in pairs],
    }


def _sections(
    checkpoint: Checkpoint, records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, seed: int
) -> list[tuple[str, str]]:
    """Titles and HTML of the parts of the page; parts with nothing to show are left out."""
    model, rows = checkpoint.model, _as_own(checkpoint.reservoir)
    sampled = _sampled(model, len(next(iter(rows.values()))), seed=seed)
    marginals, pairs = compare_rows(model.schema, rows, sampled)
    parts = [
        ("The model", _model(checkpoint, facts)),
        ("Beside other runs", comparison_table(facts.get("beside", []))),
        ("Diagnosis", _card(facts)),
        ("Training", _curves(records)),
        ("What a row costs", _columns(facts)),
        ("The latent code", _code(facts)),
        ("Rows and what the model makes of them", _pictures(model, rows, sampled)),
        ("Along the active dimensions", _traversals(model, rows, facts)),
        ("Real and sampled rows", _marginals(marginals)),
        ("Pairs of columns", _pairs(pairs)),
    ]
    return [(title, body) for title, body in parts if body]


def _model(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> str:
    architecture, likelihood = facts["architecture"], facts["likelihood"]
    tiles = [
        ("negative ELBO, nats a row", f"{facts['negative_elbo_nats']:,.2f}"),
        ("of it distortion", f"{facts['distortion_nats']:,.2f}"),
        ("of it rate", f"{facts['rate_nats']:,.2f}"),
        (
            f"negative log-likelihood, S = {likelihood['num_samples']:,}, n = {likelihood['num_rows']:,}",
            f"{likelihood['negative_log_likelihood_nats']:,.2f} ± {likelihood['standard_error_nats']:.2f}",
        ),
    ]
    figures = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles)
    text = (
        f"A {architecture['network']} network with {facts['num_weights']:,} weights, {architecture['latent_size']} "
        f"latent dimensions and the prior {architecture['prior']}, trained for {facts['num_steps']:,} steps on a data "
        f"set of {facts['num_rows']:,} rows. All figures are of rows that it was not trained on."
    )
    return f"<p>{html.escape(text)}</p><div class='tiles'>{figures}</div>"


def _card(facts: Mapping[str, Any]) -> str:
    """Traffic lights, and what was done."""
    diagnosis = facts["diagnosis"]
    if not diagnosis:
        return '<p class="quiet">The run has not finished; the diagnosis is made at its end.</p>'
    lines = "".join(
        f'<tr><td><i class="light {entry.light}"></i><span class="sr">{entry.light}</span></td>'
        f"<th>{entry.subject}</th><td>{html.escape(str(entry))}</td></tr>"
        for entry in (Finding(**finding) for finding in diagnosis["findings"])
    )
    deeds = [event for event in facts["events"] if "message" in event and event["event"] != "finding"]
    actions = [str(event["message"]) for event in deeds]
    done = "".join(f"<li>{html.escape(message)}</li>" for message in actions)
    return f"<table class='card'>{lines}</table>" + (f"<h3>What was done</h3><ul>{done}</ul>" if done else "")


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    if len(records) < 2:
        return ""
    names = (("validation_nats", "negative ELBO"), ("distortion_nats", "distortion"), ("rate_nats", "rate"))
    charts = [
        line_chart([(name, [(r["step"], r[key]) for r in records])], x_label="step", y_label=f"{name}, nats a row")
        for key, name in names
    ]
    return f"<div class='charts'>{''.join(f'<figure>{chart}</figure>' for chart in charts)}</div>"


def _columns(facts: Mapping[str, Any]) -> str:
    nats = sorted(facts["column_nats"].items(), key=lambda pair: -abs(pair[1]))
    if len(nats) < 2:
        return ""
    high = max(abs(value) for _, value in nats) or 1.0
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td class='number'>{value:,.3f}</td>"
        f"<td class='bar'><i style='width:{100 * abs(value) / high:.1f}%'></i></td></tr>"
        for name, value in nats[:40]
    )
    return (
        f"<p>Nats of every column, given the code. Below 0 a density is above 1.</p><table class='bars'>{lines}</table>"
    )


def _code(facts: Mapping[str, Any]) -> str:
    diagnosis = facts["diagnosis"]
    if not diagnosis:
        return ""
    nats = sorted(diagnosis["dimension_nats"], reverse=True)
    bars = [(str(rank + 1), [value]) for rank, value in enumerate(nats)]
    chart = bar_chart(bars, x_label="dimension, by what it tells", y_label="nats a row")
    text = f"{diagnosis['num_active_units']} of {diagnosis['latent_size']} dimensions are active."
    return f"<p>{text}</p><figure>{chart}</figure>"


@torch.no_grad()
def _pictures(model: VariationalAutoencoder, rows: Arrays, sampled: Arrays) -> str:
    """Images as images; for a table a few rows and their reconstructions."""
    some = select(rows, slice(0, NUM_IMAGES))
    again = {name: values.numpy() for name, values in model.decode(posteriors(model, some)[0]).items()}
    pictures = []
    for block in model.schema.inputs:
        grids = [
            images_of(block.columns[0].facts, arrays[block.name][:NUM_IMAGES]) for arrays in (some, again, sampled)
        ]
        for caption, images in zip(("held-out rows", "reconstructed", "sampled"), grids, strict=True):
            if images is not None:
                grid = image_grid(images, num_columns=10, alt=f"{block.columns[0].name}, {caption}")
                pictures.append(f"<figure>{grid}<figcaption>{caption}</figcaption></figure>")
    if pictures:
        return f"<div class='charts'>{''.join(pictures)}</div>"
    return _row_table(model, some, again)


def _row_table(model: VariationalAutoencoder, real: Arrays, again: Arrays) -> str:
    head, body = "", ["" for _ in range(6)]
    for block in model.schema.inputs:
        if block.role in (Role.VECTOR, Role.IMAGE):
            continue
        for index, column in enumerate(block.columns):
            head += f"<th>{html.escape(column.name)}</th>"
            for row in range(min(6, len(real[block.name]))):
                ours, theirs = (_text(column.facts, arrays[block.name][row, index]) for arrays in (real, again))
                mark = "" if ours == theirs else " class='differs'"
                body[row] += f"<td>{ours}<br><span{mark}>{theirs}</span></td>"
    lines = "".join(f"<tr>{cells}</tr>" for cells in body if cells)
    if not lines:
        return ""
    return (
        "<p>Above a held-out row, below it the row that the model expects from its code.</p>"
        f"<div class='wide'><table class='rows'><tr>{head}</tr>{lines}</table></div>"
    )


@torch.no_grad()
def _traversals(model: VariationalAutoencoder, rows: Arrays, facts: Mapping[str, Any]) -> str:
    """The decoder from the 1 % to the 99 % quantile of one dimension, the others at their median."""
    if not facts["diagnosis"]:
        return ""
    means = posteriors(model, rows)[0]
    nats, activities = (facts["diagnosis"][key] for key in ("dimension_nats", "activities"))
    ranked = sorted(range(len(nats)), key=lambda dimension: -nats[dimension])[:NUM_TRAVERSED]
    active = [dimension for dimension in ranked if activities[dimension] > 0.01]
    parts, lines = [], ""
    for dimension in active:
        decoded = {name: values.numpy() for name, values in model.decode(traversal(means, dimension)).items()}
        for block in model.schema.inputs:
            images = images_of(block.columns[0].facts, decoded[block.name])
            if images is not None:
                grid = image_grid(images, num_columns=TRAVERSAL_STEPS, alt=f"traversal of dimension {dimension}")
                caption = f"dimension {dimension}, {nats[dimension]:.2f} nats"
                parts.append(f"<figure>{grid}<figcaption>{caption}</figcaption></figure>")
        figure = f"<td class='number'>{nats[dimension]:.2f}</td>"
        lines += f"<tr><th>{dimension}</th>{figure}<td>{_moves(model, decoded)}</td></tr>"
    if parts:
        return f"<div class='charts'>{''.join(parts)}</div>"
    head = "<tr><th>dimension</th><th>nats</th><th>columns that move, 1 % → 99 %</th></tr>"
    return f"<div class='wide'><table class='rows'>{head}{lines}</table></div>" if lines else ""


def traversal(means: Tensor, dimension: int) -> Tensor:
    """(TRAVERSAL_STEPS, L) codes along one dimension of codes `means` (N, L)."""
    low, high = (float(means[:, dimension].quantile(quantile)) for quantile in QUANTILES)
    codes = means.median(dim=0).values.repeat(TRAVERSAL_STEPS, 1)
    codes[:, dimension] = torch.linspace(low, high, TRAVERSAL_STEPS)
    return codes


def _moves(model: VariationalAutoencoder, decoded: Arrays) -> str:
    """The columns that change most along a traversal, with their first and last value."""
    moved: list[tuple[float, str]] = []
    for block in model.schema.inputs:
        if block.role in (Role.VECTOR, Role.IMAGE):
            continue
        for index, column in enumerate(block.columns):
            first, last = decoded[block.name][0, index], decoded[block.name][-1, index]
            scale = column.facts.stddev or 1.0 if isinstance(column.facts, NumericFacts) else 0.5
            change = (
                abs(float(last) - float(first)) / scale if column.role is not Role.CATEGORY else float(first != last)
            )
            texts = [_text(column.facts, value) for value in (first, last)]
            if change > 0 and texts[0] != texts[1]:
                moved.append((change, f"{html.escape(column.name)} {texts[0]} → {texts[1]}"))
    return " · ".join(text for _, text in sorted(moved, reverse=True)[:4]) or "none beyond rounding"


def _marginals(marginals: Sequence[Marginal]) -> str:
    if not marginals:
        return ""
    worst_first = sorted(marginals, key=lambda marginal: marginal.overlap)[:NUM_MARGINALS]
    figures = "".join(
        f"<figure>{_marginal_chart(marginal)}"
        f"<figcaption>{html.escape(marginal.name)}: {marginal.overlap:.0%} overlap</figcaption></figure>"
        for marginal in worst_first
    )
    return f"{legend(['held-out rows', 'sampled rows'])}<div class='charts'>{figures}</div>"


def _marginal_chart(marginal: Marginal) -> str:
    shares = zip(marginal.bins, marginal.real, marginal.sampled, strict=True)
    groups = [(name, (100 * real, 100 * sampled)) for name, real, sampled in shares if real or sampled]
    return bar_chart(groups, x_label=marginal.name, y_label="% of rows")


def _pairs(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    points = [(pair.real, pair.sampled, " and ".join(pair.names)) for pair in pairs]
    chart = scatter_chart(points, x_label="Cramér's V in held-out rows", y_label="Cramér's V in sampled rows")
    error = float(np.mean([abs(pair.real - pair.sampled) for pair in pairs]))
    return (
        "<p>How strongly two columns go together, one dot a pair; on the diagonal samples have it right. "
        f"Mean difference {error:.3f}.</p><figure>{chart}</figure>"
    )


def images_of(facts: object, values: NDArray[Any]) -> NDArray[np.uint8] | None:
    """(n, H, W, C) pictures of an image column, or of a vector of bytes or bits that fills a square; else None."""
    if isinstance(facts, ImageFacts):
        pixels = values.astype(np.float32)
    elif isinstance(facts, VectorFacts) and facts.element == "uint8" and math.isqrt(facts.size) ** 2 == facts.size > 16:
        side = math.isqrt(facts.size)
        pixels = values.reshape(-1, side, side, 1).astype(np.float32) * (255.0 if facts.is_binary else 1.0)
    else:
        return None
    # Images that use a part of the range (digits of 0 to 16) are shown over all of it.
    shown: NDArray[np.uint8] = np.clip(pixels * (255.0 / max(1.0, float(pixels.max(initial=0.0)))), 0, 255).astype("u1")
    return shown


def _text(facts: object, value: Any) -> str:
    """A value of a row for a person."""
    if isinstance(facts, CategoryFacts):
        texts = ("null", "unseen", *facts.levels)
        return html.escape(texts[int(value)])
    if not math.isfinite(float(value)):
        return "null"
    number = float(value) + 0.0  # no minus before 0
    return f"{number:,.0f}" if number.is_integer() else f"{number:,.4g}"


@torch.no_grad()
def _sampled(model: VariationalAutoencoder, num_rows: int, *, seed: int) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    z_noise = torch.randn(num_rows, model.prior.num_noise, generator=generator)
    noise = torch.randn(num_rows, model.num_noise, generator=generator)
    first = 0
    for block in model.column_blocks:  # the median of every pixel, not noise on it
        if images_of(block.columns[0].facts, np.zeros((1, block.num_values), np.uint8)) is not None:
            noise[:, first : first + block.num_noise] = 0.0
        first += block.num_noise
    return {name: values.numpy() for name, values in model.sample(z_noise, noise).items()}


def _as_own(rows: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in rows.items()}
