"""The examples that embed a bundle run, and give the numbers of the library."""

from __future__ import annotations

import datetime
import importlib.util
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from handmade import column

import parvae
from parvae import Role, Schema
from parvae.bundle import read_bundle
from parvae.edge.unpack import unpack
from parvae.schema import NumericFacts
from parvae.scores import Calibration
from parvae.selftest import read_golden, replay

_SPEC = importlib.util.spec_from_file_location("service", ROOT / "examples" / "service.py")
assert _SPEC is not None
assert _SPEC.loader is not None
service = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(service)

GOLDEN_BUNDLES = [ROOT / "tests" / "golden" / f"format-{number}.vae" for number in (1, 2)]
ROW = {"age": 52, "income": 41_000.0, "city": "Köln", "code": 7, "member": True, "embedding": [1.1, -0.5, 0.3, 2.2]}


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that it overrides
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the service answers for the golden bundle."""
    with make_server("127.0.0.1", 0, service.service(parvae.load(GOLDEN_BUNDLES[0])), handler_class=_Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def post(address: str, content: bytes) -> tuple[int, Any]:
    """Status and answer of the service."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=content), timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_service_scores_rows(address: str) -> None:
    status, answer = post(address, json.dumps([ROW, {**ROW, "age": None, "income": 9e6}]).encode())
    assert status == 200
    columns = {name: np.array([value]) for name, value in ROW.items()}
    scores = parvae.load(GOLDEN_BUNDLES[0]).score(columns)
    assert answer[0]["score"] == pytest.approx(float(scores.score[0]), rel=1e-5)
    assert answer[0]["p_value"] == float(scores.p_value[0])
    assert len(answer[0]["blamed"]) == 3
    assert answer[1]["blamed"][0] == "income"
    assert answer[1]["p_value"] < answer[0]["p_value"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the request holds 0 bytes"),
        (b"{", "Expecting property name"),
        (b'{"age": 52}', "post a list of objects"),
        (json.dumps([{name: ROW[name] for name in ROW if name != "income"}]).encode(), "'income'"),
        (json.dumps([{**ROW, "age": "old"}]).encode(), "'age'"),
    ],
)
def test_the_service_says_what_is_wrong_with_a_request(address: str, content: bytes, message: str) -> None:
    status, answer = post(address, content)
    assert status == 400
    assert message in answer["error"]


def test_texts_stand_for_dates() -> None:
    facts = NumericFacts(mean=0.0, stddev=1.0, minimum=0.0, maximum=1.0, resolution=0.0)
    when = column("when", Role.TIMESTAMP, pa.timestamp("ms"), facts)
    columns = service.columns_of([{"when": "2026-11-25T04:30:00"}, {}], Schema(columns=(when,), num_rows=2))
    assert columns["when"].tolist() == [datetime.datetime(2026, 11, 25, 4, 30), None]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed")
def test_node_gives_the_golden_numbers(tmp_path: Path, digits_bundle: Path, owners_bundle: Path) -> None:
    project = tmp_path / "node"
    shutil.copytree(ROOT / "examples" / "node", project, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *quiet], cwd=project, check=True, capture_output=True)
    for number, path in enumerate((*GOLDEN_BUNDLES, digits_bundle, owners_bundle)):
        bundle, folder = read_bundle(path), tmp_path / f"bundle{number}"
        unpack(bundle, folder)
        command = ["node", "golden.mjs", str(folder)]
        done = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert sum(line.endswith(": the golden numbers") for line in lines) == len(replay(bundle))
        golden_scores = read_golden(bundle.members["golden.npz"])["score"]["out"]
        score = golden_scores.get("strangeness", golden_scores["score"])[:1]
        calibration = Calibration.from_json(bundle.manifest["calibration"])
        (found,) = [float(line.partition(": ")[2]) for line in lines if line.startswith("p-value of the first row")]
        # The row is a calibration row too: its score may round to either side of itself.
        assert found == pytest.approx(calibration.p_value(score)[0], abs=1.01 / (1 + len(calibration.scores)))
    golden = json.loads((folder / "golden.json").read_text())
    golden["graphs"]["encode"]["out"]["mean"]["data"][3] += 0.1
    (folder / "golden.json").write_text(json.dumps(golden))
    done = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "in place of" in done.stdout
