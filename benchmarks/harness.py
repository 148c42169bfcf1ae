"""What every benchmark shares: its options, the machine it ran on, alternating runs and their medians."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from parvae.edge.bench import processor

ROOT = Path(__file__).parent.parent
PACKAGES = ("parvae", "numpy", "onnxruntime", "torch", "pyarrow", "onnx")


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--json", action="store_true", help="the last line is one JSON object of named figures")
    result.add_argument("--ours-only", action="store_true", help="skip the peers")
    result.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    default = os.environ.get("PARVAE_DATA", str(ROOT.parent / "shared" / "data"))
    result.add_argument("--data", type=Path, default=Path(default), help="folder of the real data sets")
    return result


def trained(run: Path, data: Path | str, *options: str) -> float:
    """CPU seconds that `vae train` took on one thread; the run is exported too, which does not count."""
    before = os.times()
    vae("train", str(data), "-o", str(run), "--set", "train.threads=1", *options)
    after = os.times()
    vae("export", str(run / "ckpt.pt"))
    return after.children_user + after.children_system - before.children_user - before.children_system


def vae(*arguments: str) -> None:
    """Run a verb; what it prints goes to stderr, for the figures are alone on stdout."""
    subprocess.run([sys.executable, "-m", "parvae", *arguments], check=True, stdout=sys.stderr)


def machine() -> str:
    """Processor, cores and versions, for the reader of a figure."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def alternating(contenders: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, float]:
    """Median figure of each contender, run in turns so that a noisy machine is as noisy for each."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            figures[name].append(run())
    return {name: statistics.median(values) for name, values in figures.items()}


def finish(figures: Mapping[str, float], *, as_json: bool) -> None:
    """Print named figures, then the machine; with `as_json` a last line for programs."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:,.4g}")
    print(machine())
    if as_json:
        print(json.dumps(dict(figures)))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
