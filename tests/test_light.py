"""Light: numpy and onnxruntime are enough, importing does nothing, and what needs more says which command brings it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

BLOCKED = ("torch", "pyarrow", "click", "pandas", "polars", "ray", "onnx", "PIL")
"""What a bare `pip install parvae` does not bring."""
BLOCK = f"""
import sys

BLOCKED = {BLOCKED!r}
attempts = []

class Blocker:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in BLOCKED:
            attempts.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(script: str, *arguments: object, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    """A Python process in which the blocked packages cannot be imported; warnings are errors there too."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", BLOCK + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def output_of(script: str, *arguments: object) -> Any:
    """What the script prints, as JSON."""
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_module(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m parvae ARGUMENTS` in such a process."""
    script = """
        import runpy

        sys.argv[0] = "parvae"
        runpy.run_module("parvae", run_name="__main__", alter_sys=True)
    """
    # numpy and onnxruntime are imported by then; runpy warns of nothing else.
    return run(script, *arguments)


@pytest.mark.parametrize("name", BLOCKED)
def test_the_block_blocks(name: str) -> None:
    done = run(f"import {name}")
    assert done.returncode == 1
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_importing_parvae_loads_none_of_them_and_no_session() -> None:
    found = output_of("""
        import json
        import parvae

        loaded = sorted({name.partition(".")[0] for name in sys.modules})
        print(json.dumps({"attempts": attempts, "loaded": loaded}))
    """)
    assert found["attempts"] == []
    assert not set(found["loaded"]) & {*BLOCKED, "onnxruntime", "parvae_pipeline", "parvae_export"}
    assert {"parvae", "numpy"} <= set(found["loaded"])


def test_importing_parvae_loads_only_numpy_beside_the_standard_library() -> None:
    found = output_of("""
        import json
        import numpy
        before = set(sys.modules)
        import parvae

        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(json.dumps(sorted(new - set(sys.stdlib_module_names))))
    """)
    assert set(found) <= {"parvae", "numpy"}


@pytest.mark.parametrize("bundle", ["mixed_bundle", "digits_bundle"])
def test_every_verb_works_on_mappings(bundle: str, request: pytest.FixtureRequest) -> None:
    found = output_of(
        """
        import json
        import numpy as np
        import parvae

        vae = parvae.load(sys.argv[1])
        rows = vae.sample(5, seed=1)
        scores = vae.score(rows)
        print(json.dumps({
            "attempts": attempts,
            "codes": vae.encode(rows).shape,
            "decoded": sorted(vae.decode(vae.encode(rows))),
            "again": sorted(vae.reconstruct(rows)),
            "expected": sorted(scores.expected),
            "finite": bool(np.all(np.isfinite(scores.nats))),
            "flags": len(scores.is_anomaly(0.5)),
            "names": sorted(rows),
            "latent_size": vae.latent_size,
        }))
        """,
        request.getfixturevalue(bundle),
    )
    assert found["codes"] == [5, found["latent_size"]]
    assert found["decoded"] == found["again"] == found["expected"] == found["names"]
    assert found["finite"]
    assert found["flags"] == 5
    assert not [name for name in found["attempts"] if name.startswith(("torch", "pyarrow", "click", "ray"))]


@pytest.mark.parametrize("method", ["__arrow_c_stream__", "__arrow_c_array__"])
@pytest.mark.parametrize("verb", ["encode", "score", "reconstruct"])
def test_arrow_data_without_pyarrow_names_the_pip_command(verb: str, method: str, mixed_bundle: Path) -> None:
    found = output_of(
        """
        import json
        import parvae

        Frame = type("Frame", (), {sys.argv[3]: lambda self, schema=None: None})
        vae = parvae.load(sys.argv[1])
        try:
            getattr(vae, sys.argv[2])(Frame())
        except parvae.MissingExtraError as error:
            print(json.dumps([str(error), isinstance(error, ImportError), isinstance(error, parvae.Error)]))
        """,
        mixed_bundle,
        verb,
        method,
    )
    assert found[1:] == [True, True]
    assert "need pyarrow: pip install 'parvae[parquet]' (or pass a mapping of arrays)" in found[0]


def test_selftest_runs(mixed_bundle: Path) -> None:
    done = run_module("selftest", mixed_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed: True" in done.stdout.splitlines()


def test_info_runs(mixed_bundle: Path) -> None:
    done = run_module("info", mixed_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert {"model_id", "format", "modelled_columns", "latent_size", "calibration_rows"} <= set(names)


def test_bench_runs(mixed_bundle: Path) -> None:
    done = run_module("bench", mixed_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names == ["processor", "cores", "system", "versions", "score", "encode", "sample"]


@pytest.mark.parametrize("verb", ["selftest", "info"])
@pytest.mark.parametrize("fault", ["cut short", "altered", "missing"])
def test_a_damaged_file_is_one_sentence_and_exit_code_1(
    verb: str, fault: str, mixed_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.vae"
    content = bytearray(mixed_bundle.read_bytes())
    if fault == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "altered":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    done = run_module(verb, path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {path}")


def test_a_failed_selftest_is_exit_code_1_and_names_the_output(mixed_bundle: Path, tmp_path: Path) -> None:
    from parvae.bundle import bundle_bytes, read_bundle
    from parvae.selftest import read_golden, write_golden

    bundle = read_bundle(mixed_bundle)
    golden = read_golden(bundle.members["golden.npz"])
    golden["encode"]["out"]["mean"] = golden["encode"]["out"]["mean"] + 1
    path = tmp_path / "other.vae"
    path.write_bytes(bundle_bytes(bundle.manifest, {**bundle.members, "golden.npz": write_golden(golden)}))
    done = run_module("selftest", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "passed: False" in done.stdout.splitlines()
    assert "failed: encode/mean" in done.stdout.splitlines()


@pytest.mark.parametrize("arguments", [(), ("selftest",), ("info", "a.vae", "b.vae")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = run_module(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m parvae")


def test_a_verb_that_needs_more_says_what_to_install() -> None:
    done = run_module("train", "data.parquet")
    assert done.returncode == 1
    assert "pip install 'parvae[parquet]'" in done.stderr


def test_importing_parvae_changes_nothing_in_the_process() -> None:
    found = output_of("""
        import json, logging, os, threading, warnings
        import numpy  # brings threads of its own

        def state():
            loggers = [logging.getLogger(), *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
            return {
                "environment": dict(os.environ),
                "handlers": [str(handler) for logger in loggers for handler in logger.handlers],
                "level": logging.getLogger().level,
                "filters": len(warnings.filters),
                "threads": threading.active_count(),
                "kernel_threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
                "folder": os.getcwd(),
            }

        before = state()
        import parvae
        after = state()
        print(json.dumps([before, after]))
    """)
    before, after = found
    assert after == before


def test_loading_and_scoring_adds_no_log_handler_and_no_python_thread(mixed_bundle: Path) -> None:
    found = output_of(
        """
        import json, logging, threading
        import parvae

        vae = parvae.load(sys.argv[1])
        vae.score(vae.sample(3))
        loggers = [logging.getLogger(), *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
        print(json.dumps([sum(len(logger.handlers) for logger in loggers), threading.active_count()]))
        """,
        mixed_bundle,
    )
    assert found == [0, 1]


def test_the_public_names_are_all_there_and_documented() -> None:
    found = output_of("""
        import json
        import parvae

        print(json.dumps([[name, bool(getattr(parvae, name).__doc__)] for name in parvae.__all__]))
    """)
    assert [name for name, documented in found if not documented] == []
    assert {"load", "VAE", "Error", "Schema", "Scores"} <= {name for name, _ in found}
