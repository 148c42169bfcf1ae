"""The import law: jobs -> parvae_export -> parvae_pipeline -> parvae, and heavy packages only where they are named."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"parvae": "inference", "parvae_pipeline": "pipeline", "parvae_export": "export", "jobs": "."}
"""Package, and the folder that holds it."""
MAY_IMPORT: dict[str, set[str]] = {
    "parvae": {"parvae"},
    "parvae_pipeline": {"parvae", "parvae_pipeline"},
    "parvae_export": {"parvae", "parvae_pipeline", "parvae_export"},
    "jobs": {"parvae", "parvae_pipeline", "parvae_export"},
}
RAY_FILES = {"parvae_pipeline/cluster.py", "parvae_pipeline/tune.py"}
PYARROW_FILES = {
    f"parvae/{name}.py"
    for name in (
        "arrow",
        "bulk",
        "discovery",
        "explanation",
        "files",
        "parts",
        "storage",
        "stream",
        "vaez/arrow_rows",
    )
}
CLICK_FILE_NAMES = {"cli.py", "console.py", "commands.py"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One module that a file imports."""

    root: str
    line: int
    at_load: bool
    """Whether it happens when the file is imported: not inside a function, not for type checkers alone."""


def imports_of(source: str, package: str) -> Iterator[Import]:
    """All imports of a source text that lies in `package`, those by name in a string included."""
    yield from _imports(ast.parse(source), package, at_load=True)


def _imports(node: ast.AST, package: str, *, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        line = getattr(child, "lineno", 0)
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(root=alias.name.partition(".")[0], line=line, at_load=at_load)
        elif isinstance(child, ast.ImportFrom):
            root = package if child.level else (child.module or "").partition(".")[0]
            yield Import(root=root, line=line, at_load=at_load)
        elif isinstance(child, ast.Call) and _called_name(child) in ("import_module", "__import__"):
            for argument in child.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Import(root=argument.value.partition(".")[0], line=line, at_load=at_load)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), package, at_load=False)
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), package, at_load=at_load)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, package, at_load=at_load and not is_function)


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def violations(path: str, source: str) -> list[str]:
    """What a file breaks of the law; `path` is package/file.py."""
    package, file_name = path.partition("/")[0], path.rpartition("/")[2]
    found = []
    for entry in imports_of(source, package):
        where = f"{path}:{entry.line}"
        if entry.root in ROOMS and entry.root not in MAY_IMPORT[package]:
            found.append(f"{where} imports {entry.root}, which lies above {package}")
        if entry.root == "ray" and path not in RAY_FILES and package != "jobs":
            found.append(f"{where} imports ray; only {sorted(RAY_FILES)} and jobs do")
        if entry.root in ("torch", "onnx") and package == "parvae":
            found.append(f"{where} imports {entry.root}; inference never does")
        if entry.root == "pyarrow" and package == "parvae" and entry.at_load and path not in PYARROW_FILES:
            found.append(f"{where} imports pyarrow when it is loaded; only {sorted(PYARROW_FILES)} do")
        if entry.root == "click" and file_name not in CLICK_FILE_NAMES and package != "jobs":
            found.append(f"{where} imports click; only {sorted(CLICK_FILE_NAMES)} and jobs do")
    return found


def sources() -> dict[str, str]:
    """Every file of the rooms and the jobs, by package/file.py."""
    return {
        path.relative_to(ROOT / folder).as_posix(): path.read_text()
        for package, folder in ROOMS.items()
        for path in sorted((ROOT / folder / package).rglob("*.py"))
    }


def test_the_walk_sees_every_room() -> None:
    seen = sources()
    for path in ("parvae/model.py", "parvae_pipeline/train.py", "parvae_export/export.py"):
        assert path in seen
    assert sum(path.startswith("parvae/") for path in seen) > 10


def test_imports_point_one_way_and_heavy_packages_stay_where_they_are_named() -> None:
    assert [fault for path, source in sources().items() for fault in violations(path, source)] == []


@pytest.mark.parametrize("package", [name for name in ROOMS if name != "jobs"])
def test_a_source_root_holds_one_package(package: str) -> None:
    folder = ROOT / ROOMS[package]
    assert [path.parent.name for path in folder.glob("*/__init__.py")] == [package]
    assert list(folder.glob("*.py")) == []
    assert (folder / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("parvae/model.py", "import parvae_pipeline"),
        ("parvae/model.py", "from parvae_export.export import export"),
        ("parvae/commands.py", "def run():\n    from parvae_pipeline.train import train"),
        ("parvae_pipeline/train.py", "from parvae_export import export"),
        ("parvae_export/export.py", "import jobs.train"),
        ("parvae_pipeline/trainer.py", "import ray.train"),
        ("parvae_pipeline/trainer.py", "def go():\n    import ray"),
        ("parvae_export/export.py", "try:\n    from ray import tune\nexcept ImportError:\n    tune = None"),
        ("parvae/bulk.py", "import ray"),
        ("parvae/rows.py", "import torch"),
        ("parvae/rows.py", "def go():\n    import torch.nn"),
        ("parvae/rows.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("parvae/rows.py", "importlib.import_module('torch.nn')"),
        ("parvae/rows.py", "__import__('torch')"),
        ("parvae/model.py", "import pyarrow.compute as pc"),
        ("parvae/model.py", "if True:\n    from pyarrow import Table"),
        ("parvae/model.py", "class A:\n    import pyarrow"),
        ("parvae/model.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import pyarrow"),
        ("parvae/rows.py", "import click"),
        ("parvae_pipeline/train.py", "def go():\n    import click"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("parvae/model.py", "import numpy\nfrom parvae.rows import Arrays\nfrom . import rows"),
        ("parvae/model.py", "def go():\n    import pyarrow"),
        ("parvae/model.py", "if TYPE_CHECKING:\n    import pyarrow"),
        ("parvae/arrow.py", "import pyarrow as pa"),
        ("parvae/console.py", "import click"),
        ("parvae_pipeline/commands.py", "import click\nimport torch\nfrom parvae import load"),
        ("parvae_pipeline/cluster.py", "import ray"),
        ("parvae_export/export.py", "from parvae_pipeline.train import train\nimport onnx"),
        ("jobs/train.py", "import ray\nfrom parvae_export.export import export"),
        ("parvae/model.py", "import torchlight, rayon"),
    ],
)
def test_what_the_law_allows_is_not_caught(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("package", ["parvae_pipeline", "parvae_export"])
def test_a_package_root_holds_a_docstring_and_nothing_else(package: str) -> None:
    statements = ast.parse(sources()[f"{package}/__init__.py"]).body
    assert len(statements) == 1
    assert ast.get_docstring(ast.Module(statements, []))


def test_the_root_of_parvae_only_imports_and_names() -> None:
    for statement in ast.parse(sources()["parvae/__init__.py"]).body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        assert is_docstring or isinstance(statement, (ast.ImportFrom, ast.Assign)), ast.unparse(statement)


@pytest.mark.parametrize("package", [name for name in ROOMS if name != "jobs"])
def test_importing_a_package_root_loads_nothing_heavy(package: str) -> None:
    heavy = "('torch', 'ray', 'pyarrow', 'click', 'onnx', 'onnxruntime', 'pandas', 'polars', 'PIL', 'fsspec')"
    script = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
