"""New thresholds for a bundle from other rows, without training or export: the graphs stay, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parvae.bundle import Bundle, bundle_bytes
from parvae.errors import DataError
from parvae.model import VAE
from parvae.scores import Calibration

if TYPE_CHECKING:
    from parvae.files import DataFile

MAX_TABLE = 50_000
"""Scores that a table keeps: the share of normal rows flagged at alpha 1 % is then within 0.07 points of 1 %, at 95 %
confidence."""
BATCH_ROWS = 65_536


def score_files(vae: VAE, files: Sequence[DataFile]) -> NDArray[np.float32]:
    """The scores of every row of some files.

    Raises DataError naming the file that cannot be read, or whose rows do not fit the model.
    """
    import pyarrow as pa

    parts: list[NDArray[np.float32]] = []
    for file in files:
        try:
            with file.open() as parquet:
                columns = [column.name for column in vae.schema.modelled]
                batches = parquet.iter_batches(BATCH_ROWS, columns=columns)  # those it lacks are left to `score`
                tables = (file.with_partitions(pa.Table.from_batches([batch])) for batch in batches)
                parts.extend(vae.score(table).score for table in tables)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.path} cannot be read to its end ({error}); replace it") from error
        except DataError as error:
            raise DataError(f"{file.path}: {error}") from error
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def recalibrated(bundle: Bundle, scores: NDArray[np.float32], *, seed: int = 0) -> bytes:
    """The bundle as a file, its calibration table replaced by (at most MAX_TABLE, drawn at random) of these scores.

    Raises DataError when there is none, or one is not a number.
    """
    if not len(scores) or np.isnan(scores).any():
        found = "no row" if not len(scores) else f"{int(np.isnan(scores).sum())} rows whose score is not a number"
        raise DataError(f"the data hold {found}; calibrate on normal rows that training did not see")
    if len(scores) > MAX_TABLE:
        scores = np.random.default_rng(seed).choice(scores, MAX_TABLE, replace=False)
    before = bundle.manifest["calibration"]
    manifest = {
        **bundle.manifest,
        "calibration": {**before, **Calibration(scores=np.sort(scores), from_real_rows=True).to_json()},
        # The rows themselves stay out of the bundle: what it said of them still holds.
        "holds_real_rows": bundle.manifest.get("holds_real_rows", before["from_real_rows"]),
    }
    note = f"\nCalibrated anew on {len(scores):,} rows; the row above tells of the calibration at export.\n"
    card = bundle.members["card.md"].partition(b"\nCalibrated anew on ")[0]
    return bundle_bytes(manifest, {**bundle.members, "card.md": card + note.encode()})
