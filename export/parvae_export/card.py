"""The model card: what the bundle holds, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parvae_pipeline.checkpoint import Checkpoint


def model_card(checkpoint: Checkpoint, manifest: Mapping[str, Any]) -> str:
    """Markdown: figures, columns with their roles and reasons, what the calibration rests on."""
    metrics, architecture = checkpoint.metrics, checkpoint.model.architecture
    calibration = manifest["calibration"]
    source = "held-out rows" if calibration["from_real_rows"] else "rows sampled from the model (no real row is stored)"
    lines = [
        "# Variational autoencoder",
        "",
        f"Model `{manifest['model_id'][:12]}`, trained on {checkpoint.schema.num_rows:,} rows "
        f"for {metrics['num_steps']:,} steps.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| negative ELBO on held-out rows, nats a row | {metrics['negative_elbo_nats']:.4f} |",
        f"| of it distortion | {metrics['distortion_nats']:.4f} |",
        f"| of it rate | {metrics['rate_nats']:.4f} |",
        f"| latent size | {manifest['latent_size']} |",
        f"| network | {architecture.network} |",
        f"| prior | {architecture.prior} |",
        f"| calibration | {len(calibration['scores']):,} {source} |",
        "",
        "| column | role | type | reason | nats a row |",
        "|---|---|---|---|---|",
    ]
    for column in checkpoint.schema:
        nats = metrics["column_nats"].get(column.name)
        figure = "" if nats is None else f"{nats:.3f}"
        cells = (column.name, column.role.value, column.arrow_type, column.reason, figure)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, "", f"Score: {manifest['score']['definition']}.", ""])
