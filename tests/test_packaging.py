"""The wheel: built through the sdist unharmed, light in an empty environment, and complete there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, train_small

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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_oldest_runtime_that_is_promised_gives_the_golden_numbers(
    wheel: Path, mixed_table: pa.Table, digits_bundle: Path, owners_bundle: Path, tmp_path: Path
) -> None:
    """onnxruntime 1.16 fails on the empty sums in the scores of a denoising model. One bundle has a codec, another
    hashes values."""
    from parvae_export.export import export

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = [dependency.replace(">=", "==") for dependency in dependencies]
    assert {name.partition("==")[0] for name in oldest} == {"numpy", "onnxruntime"}
    pq.write_table(mixed_table.drop_columns(["embedding"]), tmp_path / "rows.parquet")
    run = train_small(tmp_path / "rows.parquet", tmp_path / "run", label="target", max_steps=20, denoising=True)
    data = str(tmp_path / "rows.parquet")
    bundles = [export(run / "ckpt.pt", tmp_path / "float.vae", codec_data=[data]).path]
    bundles.append(export(run / "ckpt.pt", tmp_path / "int8.vae", int8=True).path)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel, *oldest], check=True, capture_output=True)
    for bundle in (GOLDEN, digits_bundle, owners_bundle, *bundles):
        command = [python, "-W", "error", "-m", "parvae", "selftest", str(bundle)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "passed: True" in done.stdout
