"""Counts over scored rows, and drift since training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from parvae.arrow import ArrowColumns
from parvae.schema import NumericFacts
from parvae.tally import drift, tally
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of


def gains(num_rows: int, *, zeros: float, scale: float, seed: int) -> np.ndarray:
    """Mostly zero, and where not, with a long tail."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(num_rows) < zeros, 0.0, np.round(np.exp(rng.normal(scale, 2.0, num_rows)), 2))


def test_drift_compares_numbers_as_the_model_takes_them() -> None:
    training = pa.table({"gain": gains(2_000, zeros=0.9, scale=3.0, seed=0)})
    schema = infer_schema(statistics_of(training), overrides={}, label=None)
    facts = schema["gain"].facts_as(NumericFacts)
    assert facts.atoms == (0.0,)
    assert facts.transform == "log1p"

    def drift_of(table: pa.Table) -> float | None:
        inputs = encode(schema, table)
        counts = tally(schema, ArrowColumns(table), inputs, np.zeros((len(table), 2), np.float32), 0)
        return drift(schema["gain"], counts.columns["gain"])

    assert drift_of(training) == pytest.approx(0, abs=1e-5)
    assert drift_of(pa.table({"gain": gains(2_000, zeros=0.5, scale=3.0, seed=1)})) == pytest.approx(0, abs=0.3)
    moved = drift_of(pa.table({"gain": gains(2_000, zeros=0.9, scale=7.0, seed=1)}))
    assert moved is not None
    assert moved > 1.5
    assert drift_of(pa.table({"gain": np.zeros(50)})) is None
