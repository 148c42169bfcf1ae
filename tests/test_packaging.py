"""The wheel: built through the sdist unharmed, light in an empty environment, and complete there."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "format-1.vae"
USE = f"""
import numpy as np, parvae
vae = parvae.load({str(GOLDEN)!r})
rows = vae.sample(5, seed=1)
codes = vae.encode(rows)
assert codes.shape == (5, vae.latent_size), codes.shape
assert set(vae.decode(codes)) == set(rows)
scores = vae.score(rows)
assert np.isfinite(scores.nats).all()
assert np.allclose(scores.contributions.sum(axis=1), scores.nats, rtol=1e-4, atol=1e-3)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that an sdist makes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "parvae",
        "parvae_pipeline",
        "parvae_export",
    }
    for room, package in (("inference", "parvae"), ("pipeline", "parvae_pipeline"), ("export", "parvae_export")):
        tracked = subprocess.run(
            ["git", "ls-files", f"{room}/{package}"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        assert {name.removeprefix(f"{room}/") for name in tracked} <= set(names)
        assert f"{package}/py.typed" in names


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_empty_environment_gets_numpy_and_onnxruntime_and_can_run_a_bundle(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, wheel], check=True, capture_output=True)
    listing = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    installed = {line.partition("==")[0].lower() for line in listing.splitlines()}
    assert {"parvae", "numpy", "onnxruntime"} <= installed
    assert not installed & {"torch", "onnx", "ray", "pyarrow", "click", "pandas", "pillow", "tomli-w"}
    subprocess.run([python, "-c", USE], check=True, capture_output=True)
    done = subprocess.run([python, "-m", "parvae", "selftest", GOLDEN], check=True, capture_output=True, text=True)
    assert "passed: True" in done.stdout
    scripts = tmp_path / "env" / "bin"
    subprocess.run([scripts / "vae", "info", GOLDEN], check=True, capture_output=True)
    for command, extra in ((["vae", "score", GOLDEN], "parquet"), (["vae-export", "ckpt.pt"], "export")):
        missing = subprocess.run([scripts / command[0], *command[1:]], check=False, capture_output=True, text=True)
        assert missing.returncode == 1
        assert f"pip install 'parvae[{extra}]'" in missing.stderr
