"""A bundle as plain files: whole or not at all, byte for byte what the bundle holds, golden rows that JSON can tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT

from parvae.bundle import read_bundle
from parvae.cli import vae
from parvae.edge.unpack import golden_json, unpack
from parvae.errors import OutputError
from parvae.selftest import read_golden

GOLDEN_BUNDLES = [ROOT / "tests" / "golden" / f"format-{number}.vae" for number in (1, 2)]


@pytest.mark.parametrize("path", GOLDEN_BUNDLES, ids=lambda path: path.stem)
def test_the_files_are_those_of_the_bundle(path: Path, tmp_path: Path) -> None:
    bundle = read_bundle(path)
    done = CliRunner().invoke(vae, ["unpack", str(path), "-o", str(tmp_path / "plain"), "--json"])
    assert done.exit_code == 0, done.output
    for name, content in bundle.members.items():
        assert (tmp_path / "plain" / name).read_bytes() == content
    assert json.loads((tmp_path / "plain" / "manifest.json").read_text()) == bundle.manifest
    assert {found.name for found in (tmp_path / "plain").iterdir()} == {*bundle.members, "manifest.json", "golden.json"}
    assert [found.name for found in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize("path", GOLDEN_BUNDLES, ids=lambda path: path.stem)
def test_golden_rows_survive_json(path: Path) -> None:
    content = read_bundle(path).members["golden.npz"]
    graphs = json.loads(golden_json(content))["graphs"]
    num_names = 0
    for graph, sides in read_golden(content).items():
        for side, named in sides.items():
            for name, array in named.items():
                found = graphs[graph][side][name]
                kind = object if found["type"] == "string" else found["type"]
                data = found["data"] if kind is object else [float(value) for value in found["data"]]
                np.testing.assert_array_equal(np.array(data, kind).reshape(found["dims"]), array)
                num_names += any(isinstance(value, str) for value in found["data"]) and kind is not object
    assert num_names, "the golden rows hold NaN and infinities, which JSON has no numbers for"


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = CliRunner().invoke(vae, ["unpack", str(GOLDEN_BUNDLES[0]), "-o", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{tmp_path} is there already; remove it, or name another folder" in done.output
    assert [found.name for found in tmp_path.iterdir()] == ["mine"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> None:
        if path.name == "score.onnx":
            raise OSError(28, "No space left on device")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("parvae.edge.unpack.write_whole", fail)
    with pytest.raises(OutputError, match=r"plain cannot be written \(No space left on device\)"):
        unpack(read_bundle(GOLDEN_BUNDLES[0]), tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".plain.123.tmp").mkdir()
    unpack(read_bundle(GOLDEN_BUNDLES[0]), tmp_path / "plain")
    assert [found.name for found in tmp_path.iterdir()] == ["plain"]
