"""From a cold interpreter to the first score: parvae against numpy, onnxruntime and the same sessions made by hand.

    python benchmarks/startup.py

Each figure is the median wall time of whole fresh processes, run in turns; `empty` is an interpreter that does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from harness import ROOT, alternating, finish, parser, vae

OURS = """
import sys
import numpy as np
import parvae
vae = parvae.load(sys.argv[1])
print(float(vae.score({"image": np.zeros((1, 64), np.uint8)}).nats[0]))
"""
BY_HAND = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
print(float(session.run(["score"], {"image.image": np.zeros((1, 8, 8, 1), np.uint8)})[0][0]))
"""


def main() -> None:
    """Print the times and their ratio."""
    options = parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(Path(folder))
        with zipfile.ZipFile(bundle) as archive:
            archive.extract("score.onnx", folder)
        arguments = [str(bundle), str(Path(folder) / "score.onnx")]
        contenders = {"ours_s": lambda: _wall_s(OURS, arguments)}
        if not options.ours_only:
            contenders |= {"by_hand_s": lambda: _wall_s(BY_HAND, arguments), "empty_s": lambda: _wall_s("", arguments)}
        for run in contenders.values():
            run()  # the first run of each reads the files from disk
        figures = alternating(contenders, repeats=3 if options.quick else 31)
    if not options.ours_only:
        figures["ratio"] = figures["ours_s"] / figures["by_hand_s"]
    finish(figures, as_json=options.json)


def _bundle(folder: Path) -> Path:
    """A small model of the digits."""
    steps = "data.reservoir_rows=64"
    run = folder / "run"
    train = ["train", str(ROOT / "examples" / "digits.parquet"), "-o", str(run), "--label", "digit"]
    vae(*train, "--set", "train.max_steps=50", "--set", steps)
    vae("export", str(run / "ckpt.pt"))
    return run / "model.vae"


def _wall_s(code: str, arguments: list[str]) -> float:
    started_s = time.perf_counter()
    environment = {"ORT_DISABLE_TELEMETRY": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
