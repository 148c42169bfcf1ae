"""What the README says is there: paths exist, commands parse, and the five commands do what it promises."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from parvae.cli import vae

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"^(vae [a-z]+ [^=].*)$", README, re.MULTILINE)) | set(re.findall(r"`(vae [a-z]+ [^`]*)`", README))
)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    verb = vae.get_command(click.Context(vae), arguments[0])
    assert verb is not None, f"{arguments[0]} is no verb"
    if len(arguments) > 1 and arguments[1] != "--help":
        verb.make_context(arguments[0], arguments[1:], resilient_parsing=False)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README + CONTRIBUTING))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_path_in_the_tree_exists() -> None:
    tree = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
    folder = ROOT
    for line in filter(None, tree.splitlines()):
        names = re.match(r"\s*((?:[\w.]+\.py ?)+|[\w/]+/)", line)
        assert names, line
        if not line.startswith(" "):
            folder = ROOT / names[1]
            assert folder.is_dir(), names[1]
        else:
            for name in names[1].split():
                assert (folder / name).is_file(), f"{folder.name}/{name}"


@pytest.mark.parametrize(
    "path",
    sorted(
        set(re.findall(r"`((?:benchmarks|examples|inference|pipeline|export|tests)/[\w./-]+)`", README + CONTRIBUTING))
    ),
)
def test_every_path_in_the_text_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_module_is_in_the_tree_or_explains_itself() -> None:
    for package in ("inference/parvae", "pipeline/parvae_pipeline", "export/parvae_export"):
        for path in (ROOT / package).glob("*.py"):
            assert path.read_text(encoding="utf-8").startswith('"""'), path


def test_settings_named_in_the_readme_exist() -> None:
    from parvae_pipeline.config import RunSettings, merged, parse_assignment

    assignments = re.findall(r"^\| `([a-z]+\.[a-z_]+=[^`]+)`", README, re.MULTILINE)
    assert assignments
    for assignment in assignments:
        RunSettings.from_mapping(merged({}, dict([parse_assignment(assignment)])))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_five_commands_take_a_file_to_scores(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "digits.parquet", tmp_path / "examples")
    block = README.partition("## Five minutes")[2].partition("```sh")[2].partition("```")[0]
    output = ""
    for line in block.splitlines():
        if line.startswith("vae "):
            command = [sys.executable, "-m", "parvae", *shlex.split(line)[1:]]
            output += subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    nats = float(re.findall(r"negative elbo nats +([\d.]+)", output)[0])
    assert 85 < nats < 95
    assert float(re.findall(r"parity error +([\d.e-]+)", output)[0]) < 1e-4
    table = pq.read_table(tmp_path / "runs" / "digits" / "scores.parquet")
    assert table.num_rows == 1797
    assert table.column_names == ["id", "digit", "score", "p_value", "is_anomaly"]
