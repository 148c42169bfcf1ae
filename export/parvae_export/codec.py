"""The codec of a bundle, fitted on rows of Parquet files: networks, whole numbers, tables, probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parvae.errors import DataError
from parvae.files import DataFile
from parvae.noise import standard_normal
from parvae.schema import Role, Schema
from parvae.vaez.arrow_rows import file_batches
from parvae.vaez.codec import (
    FEATURE_UNIT,
    FEATURES_OF_A_COLUMN,
    LOGISTIC_REACH,
    LOGISTIC_UNIT,
    LOGIT_UNIT,
    MAX_FEATURE,
    MAX_MASS,
    OCTAVE,
    Codec,
)
from parvae.vaez.columns import Numbers
from parvae_export.codec_fit import MAX_STEPS, columns_of, fit_networks
from parvae_export.codec_graph import exact_graph, weights_digest, whole_layers

MAX_ROWS = 1 << 16
MIN_ROWS = 256
MAX_COLUMNS = 256
PROBE_ROWS = 64
NUM_SCALES, NUM_EXPONENTIALS = 128, 128
EXPONENTIAL_UNIT = 1 << 15
ROLES = (Role.NUMERIC, Role.BOOLEAN)


@dataclass(frozen=True, kw_only=True)
class CodecReport:
    """What fitting came to."""

    num_rows: int
    num_columns: int
    num_weights: int
    bits_per_row: float
    """Of held-out rows, in bins of about a fortieth of a standard deviation."""


def fit_codec(
    schema: Schema, files: Sequence[DataFile], *, seed: int, max_steps: int = MAX_STEPS
) -> tuple[Codec, CodecReport]:
    """The codec for the columns of numbers of `schema`, from rows spread over the files.

    Raises DataError when there is no such column, or too few rows.
    """
    names = _names(schema, files)
    values = _values(names, files)
    if len(values) < MIN_ROWS:
        raise DataError(f"a codec needs {MIN_ROWS} rows, and there are {len(values)}; give more data to --codec")
    columns = columns_of(values)
    networks, bits = fit_networks(columns, values, seed=seed, max_steps=max_steps)
    layers = whole_layers(networks)
    codec = Codec(
        names=names,
        columns=columns,
        logistic=_logistic(),
        inverse_scales=(LOGISTIC_UNIT * np.exp2(-np.arange(NUM_SCALES) / OCTAVE)).astype(np.float32),
        exponentials=np.rint(EXPONENTIAL_UNIT * np.exp(-np.arange(NUM_EXPONENTIALS) / LOGIT_UNIT)).astype(np.float32),
        probe=_probe(FEATURES_OF_A_COLUMN * columns.inputs.shape[1]),
        probe_digest="",
        weights_digest=weights_digest(layers),
        graph=exact_graph(layers),
    )
    codec = dataclasses.replace(codec, probe_digest=codec.probed())
    return codec, CodecReport(
        num_rows=len(values),
        num_columns=len(names),
        num_weights=sum(parameter.numel() for parameter in networks.parameters()),
        bits_per_row=bits,
    )


def _names(schema: Schema, files: Sequence[DataFile]) -> list[str]:
    """The columns of numbers that model and files share."""
    wanted = [column.name for column in schema if column.role in ROLES]
    batch = next(file_batches(files[0], wanted), {})
    names = [name for name in wanted if isinstance(found := batch.get(name), Numbers) and found.values.ndim == 1]
    if not names:
        raise DataError(
            f"{files[0].path} shares no columns of numbers with the model, so there is nothing for a codec; give "
            "--codec the data of the training, or leave it out"
        )
    return names[:MAX_COLUMNS]


def _values(names: Sequence[str], files: Sequence[DataFile]) -> NDArray[np.float64]:
    """(n, C) every k-th row of the files, NaN where null."""
    total = 0
    for file in files:
        with file.open() as parquet:
            total += parquet.metadata.num_rows
    every = max(1, -(-total // MAX_ROWS))
    parts = []
    for file in files:
        for batch in file_batches(file, names):
            found = []
            for name in names:
                column = batch.get(name)
                if not isinstance(column, Numbers):
                    raise DataError(f"{file.path} has no column of numbers {name!r}; give --codec files of one schema")
                values = column.values[::every].astype(np.float64)
                found.append(values if column.valid is None else np.where(column.valid[::every], values, np.nan))
            parts.append(np.stack(found, axis=1))
    return np.concatenate(parts) if parts else np.empty((0, len(names)))


def _logistic() -> NDArray[np.float32]:
    """In whole numbers, all mass at the ends."""
    places = np.arange(-LOGISTIC_REACH, LOGISTIC_REACH + 1) / LOGISTIC_UNIT
    table = np.rint(MAX_MASS / (1.0 + np.exp(-places)))
    table[0], table[-1] = 0, MAX_MASS
    return table.astype(np.float32)


def _probe(num_features: int) -> NDArray[np.int16]:
    """(64, F) features, ordinary and extreme ones."""
    probe = np.rint(FEATURE_UNIT * standard_normal(0, (PROBE_ROWS, num_features)))
    probe[:4] = np.array([MAX_FEATURE, -MAX_FEATURE, 0, FEATURE_UNIT])[:, None]
    return np.clip(probe, -MAX_FEATURE, MAX_FEATURE).astype(np.int16)
