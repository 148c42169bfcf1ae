"""The defaults on every real set at hand: does each train, and does each bundle agree with its model?

    python benchmarks/every_set.py [--budget 60s] [--data DIR]

Nothing is named but the columns to leave out. `failed` counts sets that ended with an error, `skipped_share` the share
of all steps whose gradient could not be used, `repairs` what training mended by itself (collapse, rollback,
overfitting, the amortization gap), `collapsed` sets whose code held almost nothing at the end, whether or not their
columns tell of one another, and `red` sets with any red light in their diagnosis. A line for every set goes to stderr,
with the lights that are not green and what was done about them, or can be.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import finish, parser, vae

from parvae_pipeline.checkpoint import read_checkpoint

FOLDERS = {
    "adult": "",
    "binmnist": "label:label",
    "cifar10": "label:label",
    "mnist": "label:label",
    "smiles": "smile:label",
}
"""Sets in folders of their own, and the role of the column that is no data."""
QUICK = ("glass", "wine")
REPAIRS = ("collapse", "rollback", "overfitting", "amortization")
"""Events of what training mended by itself."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of one set."""

    num_steps: int
    num_skipped: int
    repairs: list[str]
    red: frozenset[str]
    """Subjects of the diagnosis."""


def main() -> None:
    """Train and export every set for the same time."""
    options = parser(__doc__ or "")
    options.add_argument("--budget", default="60s", help="of each set")
    chosen = options.parse_args()
    sets = {
        f"adbench/{path.stem}": (str(path), "anomaly:label")
        for path in sorted((chosen.data / "adbench").glob("*.parquet"))
    }
    if chosen.quick:
        sets = {name: sets[f"adbench/{name}"] for name in QUICK}
    else:
        sets |= {name: (f"{chosen.data / name}/train*.parquet", columns) for name, columns in FOLDERS.items()}
    trained, failed = [], []
    for name, (data, columns) in sets.items():
        try:
            trained.append(_train(name, data, columns, budget="5s" if chosen.quick else chosen.budget))
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: failed with exit code {error.returncode}", file=sys.stderr)
    num_steps = sum(each.num_steps for each in trained)
    finish(
        {
            "sets": len(sets),
            "failed": len(failed),
            "skipped_share": sum(each.num_skipped for each in trained) / max(1, num_steps),
            "repairs": sum(len(each.repairs) for each in trained),
            "collapsed": sum("latent code" in each.red for each in trained),
            "red": sum(bool(each.red) for each in trained),
        },
        as_json=chosen.json,
    )


def _train(name: str, data: str, columns: str, *, budget: str) -> Trained:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        vae("train", data, "-o", str(run), "--budget", budget, "--columns", columns, "--set", "train.threads=1")
        vae("export", str(run / "ckpt.pt"))
        metrics = read_checkpoint(run / "ckpt.pt").metrics
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    findings = metrics["diagnosis"]["findings"]
    found = Trained(
        num_steps=metrics["num_steps"],
        num_skipped=metrics["num_skipped_steps"],
        repairs=[entry["event"] for entry in log if entry.get("event") in REPAIRS],
        red=frozenset(finding["subject"] for finding in findings if finding["light"] == "red"),
    )
    said = "; ".join(entry["message"] for entry in log if entry.get("event") == "finding")
    print(f"set {name}: {found.num_steps} steps, {found.num_skipped} skipped, {found.repairs}; {said}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
