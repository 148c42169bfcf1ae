"""The whole way on 1,797 real digits: train, export, score, sample, reconstruct, encode, and a picture.

    make demo

Everything lands in runs/demo. The numbers that the table should show are in the README.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

import parvae
from parvae.console import print_table

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.parquet"
OUTPUT = ROOT / "runs" / "demo"
SCALE, GAP, COLUMNS = 4, 2, 10
MAX_VALUE = 16  # a pixel of this data set counts 0 to 16 dots


def main() -> None:
    """Run every step and print what it made."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    steps = [
        _step("train", DIGITS, "-o", OUTPUT, "--label", "digit", figure=("negative_elbo_nats", "nats a row, held out")),
        _step("export", OUTPUT / "ckpt.pt", figure=("parity_error", "largest difference from torch")),
        _step("score", OUTPUT / "model.vae", DIGITS, "-o", OUTPUT / "scores.parquet", figure=("rows_per_s", "rows/s")),
        _step("sample", OUTPUT / "model.vae", "-n", "1000", "-o", OUTPUT / "samples.parquet", figure=("rows", "rows")),
        _step(
            "reconstruct", OUTPUT / "model.vae", DIGITS, "-o", OUTPUT / "again.parquet", figure=("rows_per_s", "rows/s")
        ),
        _step("encode", OUTPUT / "model.vae", DIGITS, "-o", OUTPUT / "codes.parquet", figure=("rows_per_s", "rows/s")),
        _step("selftest", OUTPUT / "model.vae", figure=("largest_error", "largest difference from the golden rows")),
        _picture(),
    ]
    print()
    print_table(("step", "made", "figure", "", "seconds"), steps)


def _step(verb: str, *arguments: object, figure: tuple[str, str]) -> list[Any]:
    """Run `vae VERB` as a user would; one line of the table."""
    print(f"vae {verb} {' '.join(_short(argument) for argument in arguments)}", flush=True)
    started_s = time.monotonic()
    command = [sys.executable, "-m", "parvae", verb, *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    name, unit = figure
    made = result.get("checkpoint") or result.get("bundle") or result.get("output") or ""
    return [verb, _short(made), result[name], unit, round(time.monotonic() - started_s, 1)]


def _picture() -> list[Any]:
    """Real rows, their reconstructions and fresh samples, side by side."""
    started_s = time.monotonic()
    rows = pq.read_table(DIGITS).slice(0, 8 * COLUMNS)
    vae = parvae.load(OUTPUT / "model.vae")
    real = np.stack(rows["image"].to_numpy()).reshape(-1, 8, 8)
    again = vae.decode(vae.encode(rows))["image"].reshape(-1, 8, 8)
    fresh = vae.sample(len(real), seed=0)["image"].reshape(-1, 8, 8)
    panels = [_panel(images) for images in (real, again, fresh)]
    margin = np.full((panels[0].shape[0], 6 * GAP), 255, np.uint8)
    path = OUTPUT / "samples.png"
    Image.fromarray(np.concatenate([panels[0], margin, panels[1], margin, panels[2]], axis=1)).save(path)
    return [
        "picture",
        _short(path),
        len(real),
        "rows: real, reconstructed, sampled",
        round(time.monotonic() - started_s, 1),
    ]


def _panel(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (n, 8, 8) in a grid, each pixel SCALE x SCALE, dark on white."""
    grey = 255 - (images.astype(np.float32) * (255 / MAX_VALUE)).clip(0, 255).astype(np.uint8)
    large = grey.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    padded = np.pad(large, ((0, 0), (GAP, GAP), (GAP, GAP)), constant_values=255)
    num_rows, side = len(images) // COLUMNS, padded.shape[1]
    return padded.reshape(num_rows, COLUMNS, side, side).swapaxes(1, 2).reshape(num_rows * side, COLUMNS * side)


def _short(path: object) -> str:
    return str(path).replace(f"{ROOT}/", "")


if __name__ == "__main__":
    main()
