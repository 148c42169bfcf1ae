"""A bundle of each format, committed: every later version reads it and gives the numbers it gave."""

from __future__ import annotations

import numpy as np
from conftest import ROOT

import parvae
from parvae.bundle import read_bundle
from parvae.selftest import replay

FORMAT_1 = ROOT / "tests" / "golden" / "format-1.vae"
ROW = {
    "age": np.array([52]),
    "income": np.array([41_000.0]),
    "city": np.array(["Köln"]),
    "code": np.array([7]),
    "member": np.array([True]),
    "embedding": np.array([[1.1, -0.5, 0.3, 2.2]], dtype="f4"),
}
MODEL_ID = "8ed2028b1d1bff7e44e1917c88d7ef54543d3d1890ac3f9db9620ae67dd49f80"
CODE = [3.243713, -0.132442, -0.995609, -0.543695]
SCORE = 6.71020
AGES = [32, 56, 53]
CITIES = ["Köln", "São Paulo", "São Paulo"]


def test_the_golden_rows_of_format_1_replay() -> None:
    bundle = read_bundle(FORMAT_1)
    assert bundle.manifest["format"] == 1
    checks = replay(bundle)
    assert len(checks) == 12
    assert all(check.passed for check in checks)


def test_the_numbers_of_format_1_stay() -> None:
    vae = parvae.load(FORMAT_1)
    assert vae.model_id == MODEL_ID
    np.testing.assert_allclose(vae.encode(ROW)[0], CODE, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vae.score(ROW).nats[0], SCORE, rtol=1e-4, atol=1e-3)
    fresh = vae.sample(3, seed=7)
    assert fresh["age"].tolist() == AGES
    assert fresh["city"].tolist() == CITIES


FORMAT_2 = ROOT / "tests" / "golden" / "format-2.vae"
ROWS_2 = {
    "age": np.array([40, 40]),
    "income": np.array([31_000.0, 75_000.0]),
    "spent": np.array([200.0, 0.0]),
    "city": np.array(["Köln", "Köln"]),
    "member": np.array([True, True]),
}
STRANGENESS = [-0.22538, 3.31900]
PARTS = {
    "conditional": [0.10735, 4.45929],
    "residual": [0.66642, 4.87514],
    "distance": [-0.74651, 1.95296],
    "isolation": [-0.92879, 1.98861],
}
INCOME_BLAME = [-0.0991, 48.9424]


def test_the_golden_rows_of_format_2_replay() -> None:
    bundle = read_bundle(FORMAT_2)
    assert bundle.manifest["format"] == 2
    checks = replay(bundle)
    assert len(checks) == 14
    assert all(check.passed for check in checks)


def test_the_numbers_of_format_2_stay() -> None:
    scores = parvae.load(FORMAT_2).score(ROWS_2)
    np.testing.assert_allclose(scores.score, STRANGENESS, rtol=1e-4, atol=1e-3)
    assert list(scores.strangeness_parts) == list(PARTS)
    for name, values in PARTS.items():
        np.testing.assert_allclose(scores.strangeness_parts[name], values, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores.p_value, [89 / 121, 1 / 121])
    np.testing.assert_allclose(scores.blame()[:, scores.parts.index("income")], INCOME_BLAME, rtol=1e-4, atol=1e-3)
