"""Bytes and speed of compressed tables beside what one would otherwise use.

    python benchmarks/compression.py

Adult is compressed without loss, beside Parquet with zstd 19, columns of dictionary codes under zstd 19, and bz2 and xz
of the CSV. Four ADBench sets are compressed within 1 % of each column's range, beside a uniform quantiser of step twice
the bound with an ideal order-0 coder that needs no tables (the entropy of its symbols). Speeds are CPU time of one
thread (reading: the median of five runs) against the bytes of the table in Arrow memory. Every value is checked.

The 10,000 test images of MNIST are compressed without loss, beside xz, bz2 and zstd 19 of the raw array and one PNG or
lossless WebP an image; the faces of `smiles` (grey) and the pictures of `cifar10` (colour), decoded from their JPEG,
likewise.

`--model 2m` compresses with a model that the reader has too. `codec_ratio` is a whole set within its bounds, by the
codec of a model of that set, against the same quantiser; `codec_decompress_mb_per_s` the speed back. For the next ones
the columns are whole numbers of the step that their bound allows, the model (trained for that time) and its codec know
a random half of the rows, and the other half is compressed: `unseen_codec_ratio` against the quantiser, and
`unseen_codec_share` against our bytes without a model. `unseen_two_part_share` is why the codec does without the codes
of the autoencoder: codes rounded to steps of c * sqrt(12) posterior standard deviations (c of 0.7, 1 or 1.4, the best
one), stored as columns of whole numbers, and minus the log-likelihood of the columns given them, as if the decoder gave
the same bits everywhere. `message_bytes` are 100 of the unseen rows as one file, with the codec and without.
"""

from __future__ import annotations

import bz2
import io
import lzma
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from harness import finish, parser, trained, vae
from numpy.typing import NDArray
from PIL import Image

import parvae
from parvae.schema import NumericFacts
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.numeric_block import is_on_grid
from parvae_pipeline.reader import encode

BOUNDED_SETS = ("donors", "pendigits", "satellite", "shuttle")
MODEL_SETS = ("pendigits", "satellite", "shuttle")
SHARE = 0.01
IMAGE_SETS = ("mnist", "smiles", "cifar10")
MAX_IMAGES = 10_000
REPEATS = 5
STEP_SHARES = (0.7, 1.0, 1.4)
MESSAGE_ROWS = 100
BYTES_PER_NAT = 1.0 / np.log(2.0) / 8.0


def main() -> None:
    """Print bytes, ratios to the best or only peer, and speeds."""
    choices = parser(__doc__ or "")
    choices.add_argument("--model", metavar="TIME", help="also train a model of each ADBench set, for this long")
    options = choices.parse_args()
    adult = pa.concat_tables(pq.read_table(path) for path in sorted((options.data / "adult").glob("*.parquet")))
    figures = _adult(adult.slice(0, 500) if options.quick else adult, peers=not options.ours_only)
    for name in BOUNDED_SETS:
        table = _bounded_set(options.data, name)
        figures |= _bounded(name, table.slice(0, 500) if options.quick else table, peers=not options.ours_only)
        if options.model and name in MODEL_SETS:
            figures |= _with_model(name, table, budget=options.model)
    for name in IMAGE_SETS:
        images = _images(options.data, name)
        figures |= _lossless_images(name, images[:50] if options.quick else images, peers=not options.ours_only)
    finish(figures, as_json=options.json)


def _adult(table: pa.Table, *, peers: bool) -> dict[str, float]:
    figures, again = _ours("adult", table, {})
    if not again.equals(table):
        raise RuntimeError("adult does not come back")
    if peers:
        csv, parquet = io.BytesIO(), io.BytesIO()
        pyarrow.csv.write_csv(table, csv)
        pq.write_table(table, parquet, compression="zstd", compression_level=19)
        found = {
            "adult_parquet_zstd_bytes": len(parquet.getvalue()),
            "adult_dictionary_zstd_bytes": _dictionary_zstd(table),
            "adult_csv_bz2_bytes": len(bz2.compress(csv.getvalue())),
            "adult_csv_xz_bytes": len(lzma.compress(csv.getvalue(), preset=9)),
        }
        figures |= found
        figures["adult_ratio"] = figures["adult_bytes"] / min(found.values())
    return figures


def _dictionary_zstd(table: pa.Table) -> int:
    """Every column as its distinct values and the smallest unsigned codes, each under zstd 19."""
    codec, total = pa.Codec("zstd", 19), 0
    for column in table.columns:
        encoded = pa.concat_arrays(column.chunks).dictionary_encode(null_encoding="encode")
        codes = np.asarray(encoded.indices)
        levels = "\n".join(str(value) for value in encoded.dictionary.to_pylist()).encode()
        narrow = codes.astype(np.min_scalar_type(int(codes.max())))
        total += len(codec.compress(levels)) + len(codec.compress(narrow.tobytes()))
    return total


def _bounded(name: str, table: pa.Table, *, peers: bool) -> dict[str, float]:
    figures, again = _ours(name, table, dict.fromkeys(table.column_names, f"rel:{SHARE}"))
    _require_bounds(name, table, again)
    order_0_bits = sum(map(_order_0_bits, _steps(table).values()))
    if peers:
        figures[f"{name}_quantiser_order_0_bytes"] = order_0_bits / 8
        figures[f"{name}_ratio"] = 8 * figures[f"{name}_bytes"] / order_0_bits
    return figures


def _require_bounds(name: str, table: pa.Table, again: pa.Table) -> None:
    for column in table.column_names:
        x, y = (np.asarray(found[column]).astype(np.float64) for found in (table, again))
        if np.abs(x - y).max() > SHARE * (x.max() - x.min()):
            raise RuntimeError(f"{name}: column {column} leaves its bound")


def _steps(table: pa.Table) -> dict[str, NDArray[np.int16]]:
    """Every column as whole numbers of the step that its bound allows; those without any width are left out."""
    steps: dict[str, NDArray[np.int16]] = {}
    for column in table.column_names:
        x = np.asarray(table[column]).astype(np.float64)
        if x.max() > x.min():
            steps[column] = np.rint((x - x.min()) / (2 * SHARE * (x.max() - x.min()))).astype(np.int16)
    return steps


def _order_0_bits(steps: NDArray[np.int16]) -> float:
    counts = np.unique(steps, return_counts=True)[1]
    return float(np.sum(counts * np.log2(len(steps) / counts)))


def _with_model(name: str, table: pa.Table, *, budget: str) -> dict[str, float]:
    bounds = dict.fromkeys(table.column_names, f"rel:{SHARE}")
    blob, model, _ = _by_codec(table, table, budget=budget, bounds=bounds)
    _require_bounds(name, table, model.decompress(blob))
    order_0_bits = sum(map(_order_0_bits, _steps(table).values()))

    steps = pa.table(_steps(table))
    order = np.random.default_rng(0).permutation(table.num_rows)
    seen, unseen = (steps.take(rows) for rows in np.array_split(order, 2))
    unseen_blob, unseen_model, trained_model = _by_codec(seen, unseen, budget=budget, bounds={})
    if not unseen_model.decompress(unseen_blob).equals(unseen):
        raise RuntimeError(f"{name}: rows do not come back")
    for column in unseen_model.schema.modelled:
        if isinstance(column.facts, NumericFacts) and not is_on_grid(column.facts):
            raise RuntimeError(f"{name}: column {column.name} has a density, not a probability of every step")
    unseen_bits = sum(_order_0_bits(np.asarray(unseen[column])) for column in unseen.column_names)
    ours = len(parvae.compress(unseen))
    message = unseen.slice(0, MESSAGE_ROWS)
    return {
        f"{name}_codec_ratio": 8 * len(blob) / order_0_bits,
        f"{name}_codec_decompress_mb_per_s": table.nbytes / 1e6 / _decompress_s(blob, model),
        f"{name}_unseen_codec_ratio": 8 * len(unseen_blob) / unseen_bits,
        f"{name}_unseen_codec_share": len(unseen_blob) / ours,
        f"{name}_unseen_two_part_share": min(_two_part_bytes(trained_model, unseen, share) for share in STEP_SHARES)
        / ours,
        f"{name}_message_bytes": len(parvae.compress(message)),
        f"{name}_message_codec_bytes": len(unseen_model.compress(message)),
    }


def _by_codec(
    seen: pa.Table, rows: pa.Table, *, budget: str, bounds: dict[str, str]
) -> tuple[bytes, parvae.VAE, VariationalAutoencoder]:
    """`rows` compressed by the codec of a model of `seen`, and that model, exported and as it was trained."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "seen.parquet", Path(folder) / "run"
        pq.write_table(seen, data)
        trained(run, data, "--budget", budget)
        vae("export", str(run / "ckpt.pt"), "--codec", str(data))
        model = parvae.load((run / "model.vae").read_bytes())
        checkpoint = read_checkpoint(run / "ckpt.pt")
    return model.compress(rows, bounds=bounds), model, checkpoint.model.eval()


@torch.no_grad()
def _two_part_bytes(model: VariationalAutoencoder, rows: pa.Table, step_share: float) -> float:
    """Bytes of the rounded codes of `rows`, and of the columns given them."""
    raw = {block: torch.from_numpy(array) for block, array in encode(model.schema, rows).items()}
    mean, log_variance = model.posterior(raw)
    steps = step_share * np.sqrt(12.0) * torch.exp(0.5 * log_variance.mean(dim=0))
    codes = torch.round(mean / steps)
    whole = codes.numpy().astype(np.int32)
    stored = parvae.compress({str(dimension): whole[:, dimension] for dimension in range(whole.shape[1])})
    return len(stored) + float(model.column_nats(raw, codes * steps).double().sum()) * BYTES_PER_NAT


def _images(data: Path, name: str) -> NDArray[np.uint8]:
    """(n, height, width, channels) or (n, height, width)"""
    column = pq.read_table(data / name / "test-00.parquet", columns=["image"])["image"].combine_chunks()[:MAX_IMAGES]
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(-1, 28, 28)
    return np.stack([np.asarray(Image.open(io.BytesIO(raw))) for raw in column.to_pylist()])


def _lossless_images(name: str, images: NDArray[np.uint8], *, peers: bool) -> dict[str, float]:
    started_s = time.process_time()
    blob = parvae.compress({"image": images})
    packed_s = time.process_time()
    if not np.array_equal(parvae.decompress(blob)["image"], images):
        raise RuntimeError(f"{name}: an image does not come back")
    figures = {
        f"{name}_bits_per_byte": 8 * len(blob) / images.size,
        f"{name}_compress_mb_per_s": images.nbytes / 1e6 / (packed_s - started_s),
        f"{name}_decompress_mb_per_s": images.nbytes / 1e6 / _decompress_s(blob),
    }
    if peers:
        raw = images.tobytes()
        found = {
            f"{name}_xz_bits_per_byte": len(lzma.compress(raw, preset=9)),
            f"{name}_bz2_bits_per_byte": len(bz2.compress(raw)),
            f"{name}_zstd_bits_per_byte": len(pa.Codec("zstd", 19).compress(raw)),
            f"{name}_png_bits_per_byte": _encoded_bytes(images, "PNG", optimize=True),
            f"{name}_webp_bits_per_byte": _encoded_bytes(images, "WEBP", lossless=True, quality=100, method=6),
        }
        figures |= {key: 8 * size / images.size for key, size in found.items()}
        figures[f"{name}_ratio"] = len(blob) / min(found.values())
    return figures


def _encoded_bytes(images: NDArray[np.uint8], form: str, **settings: Any) -> int:
    """One file an image."""
    total = 0
    for image in images:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, form, **settings)
        total += sink.tell()
    return total


def _ours(name: str, table: pa.Table, bounds: dict[str, str]) -> tuple[dict[str, float], pa.Table]:
    started_s = time.process_time()
    blob = parvae.compress(table, bounds=bounds)
    packed_s = time.process_time()
    figures = {
        f"{name}_bytes": float(len(blob)),
        f"{name}_compress_mb_per_s": table.nbytes / 1e6 / (packed_s - started_s),
        f"{name}_decompress_mb_per_s": table.nbytes / 1e6 / _decompress_s(blob),
    }
    return figures, parvae.decompress(blob)


def _decompress_s(blob: bytes, model: parvae.VAE | None = None) -> float:
    """Median CPU seconds of several runs."""
    taken_s = []
    for _ in range(REPEATS):
        started_s = time.process_time()
        parvae.decompress(blob, model=model)
        taken_s.append(time.process_time() - started_s)
    return statistics.median(taken_s)


def _bounded_set(data: Path, name: str) -> pa.Table:
    (path,) = (path for path in (data / "adbench").glob("*.parquet") if name in path.stem.lower())
    table = pq.read_table(path)
    return table.select([column for column in table.column_names if column != "anomaly"])


if __name__ == "__main__":
    main()
