"""A bundle of format 1, committed: every later version reads it and gives the numbers it gave."""

from __future__ import annotations

import numpy as np
from conftest import ROOT

import parvae
from parvae.bundle import read_bundle
from parvae.selftest import replay

GOLDEN = ROOT / "tests" / "golden" / "format-1.vae"
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
    bundle = read_bundle(GOLDEN)
    assert bundle.manifest["format"] == 1
    checks = replay(bundle)
    assert len(checks) == 12
    assert all(check.passed for check in checks)


def test_the_numbers_of_format_1_stay() -> None:
    vae = parvae.load(GOLDEN)
    assert vae.model_id == MODEL_ID
    np.testing.assert_allclose(vae.encode(ROW)[0], CODE, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vae.score(ROW).nats[0], SCORE, rtol=1e-4, atol=1e-3)
    fresh = vae.sample(3, seed=7)
    assert fresh["age"].tolist() == AGES
    assert fresh["city"].tolist() == CITIES
