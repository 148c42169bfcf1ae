"""A bundle as a folder of plain files, for programs in other languages: graphs, manifest, golden rows as JSON.

manifest.json   schema, score, calibration table, noise: as in the bundle
*.onnx          the graphs
golden.json     rows in and numbers out of every graph, and how far a machine may be off
golden.npz      the same for numpy
card.md         the model in words
"""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from parvae.bundle import MANIFEST, Bundle, write_whole
from parvae.errors import OutputError
from parvae.selftest import (
    ABSOLUTE_TOLERANCE,
    CONTINUOUS_OUTPUTS,
    DEFAULT_ABSOLUTE_TOLERANCE,
    MAX_EDGE_SHARE,
    RELATIVE_TOLERANCE,
    read_golden,
)


def unpack(bundle: Bundle, folder: str | os.PathLike[str]) -> list[str]:
    """Write the files of `bundle` into a new folder, which appears whole; returns their names.

    Raises OutputError when the folder is there already, or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target} is there already; remove it, or name another folder")
    files = {
        MANIFEST: json.dumps(bundle.manifest, indent=1, ensure_ascii=False).encode(),
        **bundle.members,
        "golden.json": golden_json(bundle.members["golden.npz"]),
    }
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for name, content in files.items():
            write_whole(temporary / name, content)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}); make room or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return list(files)


def golden_json(content: bytes) -> bytes:
    """The golden rows of golden.npz as JSON: graph -> "in" or "out" -> name -> type, dims and data, row by row.

    JSON has no NaN and no infinities: they stand as the texts that JavaScript's Number reads ("NaN", "Infinity").
    An output also states the absolute tolerance of `parvae.selftest.compare`, and whether it is continuous.
    """
    golden = read_golden(content)
    graphs: dict[str, dict[str, dict[str, Any]]] = {}
    for graph, sides in golden.items():
        inputs = {name: _tensor(array) for name, array in sides["in"].items()}
        outputs = {
            name: {
                **_tensor(array),
                "tolerance": ABSOLUTE_TOLERANCE.get(name, DEFAULT_ABSOLUTE_TOLERANCE),
                "continuous": name in CONTINUOUS_OUTPUTS,
            }
            for name, array in sides["out"].items()
        }
        graphs[graph] = {"in": inputs, "out": outputs}
    document = {"relative_tolerance": RELATIVE_TOLERANCE, "max_edge_share": MAX_EDGE_SHARE, "graphs": graphs}
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def _tensor(array: NDArray[Any]) -> dict[str, Any]:
    kind = "string" if array.dtype == object else array.dtype.name
    data = array.reshape(-1).tolist()
    if array.dtype.kind == "f":
        data = [value if math.isfinite(value) else _name_of(value) for value in data]
    return {"type": kind, "dims": list(array.shape), "data": data}


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
