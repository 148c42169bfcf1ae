"""Replay the golden rows of a bundle: does this machine give the numbers that were verified at export?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.bundle import GRAPHS, Bundle
from parvae.sessions import Sessions
from parvae.vaez.codec import FACTS, GRAPH, Codec

RELATIVE_TOLERANCE = 1e-4
CONTINUOUS_OUTPUTS = ("mean", "stddev", "score", "contributions", "strangeness", "parts", "conditional", "hidden_codes")
"""Outputs without whole numbers or nulls."""
ABSOLUTE_TOLERANCE = dict.fromkeys(("score", "contributions", "strangeness", "parts", "conditional"), 0.001)
DEFAULT_ABSOLUTE_TOLERANCE = 1e-5
INT8_TOLERANCE_FACTOR = 100.0
"""Of a bundle with layers in 8 bits: a number between two of 256 steps may fall to either side."""
MAX_EDGE_SHARE = 1e-3
"""A float on the edge between two whole numbers, levels or nulls may fall to either side: at most this share of values
(or one value), and whole numbers by at most 1."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One output of one graph against its golden numbers."""

    graph: str
    output: str
    error: float
    """Largest difference, in units of the column's largest value (at least 1); for text and pixels, the share of values
    that differ."""
    limit: float
    passed: bool


def replay(bundle: Bundle, *, threads: int = 1) -> list[Check]:
    """Run every graph on the golden rows and compare with the golden numbers."""
    golden = read_golden(bundle.members["golden.npz"])
    sessions = Sessions({graph: bundle.members[f"{graph}.onnx"] for graph in GRAPHS}, threads=threads, low_memory=False)
    factor = INT8_TOLERANCE_FACTOR if "int8" in bundle.manifest else 1.0
    checks: list[Check] = []
    for graph in GRAPHS:
        outputs = sessions.run(graph, golden[graph]["in"])
        checks += [
            compare(graph, name, outputs[name], wanted, tolerance_factor=factor)
            for name, wanted in golden[graph]["out"].items()
        ]
    if FACTS in bundle.members:
        codec = Codec.from_members(bundle.members[FACTS], bundle.members[GRAPH], proved=False)
        error = float(codec.probed() != codec.probe_digest)
        checks.append(Check(graph="decode_exact", output="parameters", error=error, limit=0.0, passed=not error))
    return checks


def summarise(checks: Sequence[Check]) -> dict[str, object]:
    """The outcome in a few figures, the worst output named."""
    worst = max(checks, key=lambda check: (not check.passed, check.error))
    failed = [f"{check.graph}/{check.output}" for check in checks if not check.passed]
    return {
        "passed": not failed,
        "outputs_compared": len(checks),
        "largest_error": worst.error,
        "largest_error_in": f"{worst.graph}/{worst.output}",
        **({"failed": ", ".join(failed)} if failed else {}),
    }


def describe(bundle: Bundle) -> dict[str, object]:
    """What a bundle says of itself, in a few figures."""
    manifest = bundle.manifest
    modelled = [column["name"] for column in manifest["schema"]["columns"] if "facts" in column]
    return {
        "model_id": manifest["model_id"],
        "format": manifest["format"],
        "trained_on_rows": manifest["schema"]["num_rows"],
        "modelled_columns": len(modelled),
        "latent_size": manifest["latent_size"],
        "negative_elbo_nats": manifest["metrics"]["negative_elbo_nats"],
        "calibration_rows": len(manifest["calibration"]["scores"]),
        "codec": f"{manifest['codec']['num_columns']} columns" if "codec" in manifest else "none",
        "hidden_layers": "int8" if "int8" in manifest else "float32",
        "holds_real_rows": manifest.get("holds_real_rows", manifest["calibration"]["from_real_rows"]),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    }


def compare(
    graph: str,
    output: str,
    found: NDArray[Any],
    wanted: NDArray[Any],
    *,
    like: NDArray[Any] | None = None,
    tolerance_factor: float = 1.0,
) -> Check:
    """Compare one output with what it should be.

    `like` are more rows of the same output, where `wanted` are too few to show how large its values are.
    """
    if found.shape != wanted.shape or not wanted.size:
        same = found.shape == wanted.shape
        return Check(graph=graph, output=output, error=0.0 if same else float("inf"), limit=0.0, passed=same)
    edge_limit = max(MAX_EDGE_SHARE, 1.0 / wanted.size)
    if wanted.dtype.kind != "f":
        error = float(np.mean(found != wanted))
        return Check(graph=graph, output=output, error=error, limit=edge_limit, passed=error <= edge_limit)
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    null, found_null = np.isnan(wanted), np.isnan(found)
    with np.errstate(invalid="ignore"):
        difference = np.where(null | found_null | (found == wanted), 0.0, np.abs(found - wanted))
    # Data columns carry their own units: the tolerance follows the size of the column's values.
    size = np.where(np.isfinite(wanted), np.abs(wanted), 0.0)
    more = wanted if like is None else like.astype(np.float64)
    scale = np.maximum(1.0, np.max(np.where(np.isfinite(more), np.abs(more), 0.0), axis=0, initial=0.0))
    limit = ABSOLUTE_TOLERANCE.get(output, DEFAULT_ABSOLUTE_TOLERANCE) * scale + RELATIVE_TOLERANCE * size
    limit *= tolerance_factor
    with np.errstate(invalid="ignore"):
        both_whole = (found == np.rint(found)) & (wanted == np.rint(wanted))
        beyond = ~null & ~found_null & (difference > limit)
    on_edge = (null != found_null) | (beyond & both_whole & (difference <= 1.0))
    if output in CONTINUOUS_OUTPUTS:
        on_edge = np.zeros_like(on_edge)
        beyond = beyond | (null != found_null)
    passed = float(np.mean(on_edge)) <= edge_limit and not np.any(beyond & ~on_edge)
    error = float(np.max(np.where(on_edge, 0.0, difference) / scale))
    return Check(graph=graph, output=output, error=error, limit=float(np.max(limit / scale)), passed=passed)


def write_golden(golden: dict[str, dict[str, dict[str, NDArray[Any]]]]) -> bytes:
    """Golden rows as the bytes of golden.npz: graph -> "in" or "out" -> name -> array. Holds no pickle."""
    arrays = {
        f"{graph}/{side}/{name}": array.astype(str) if array.dtype == object else array
        for graph, sides in golden.items()
        for side, named in sides.items()
        for name, array in named.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # array names are not numpy's keywords
    return buffer.getvalue()


def read_golden(content: bytes) -> dict[str, dict[str, dict[str, NDArray[Any]]]]:
    """The golden rows that `write_golden` wrote."""
    golden: dict[str, dict[str, dict[str, NDArray[Any]]]] = {graph: {"in": {}, "out": {}} for graph in GRAPHS}
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        for key in archive.files:
            graph, side, name = key.split("/", 2)
            array = archive[key]
            golden[graph][side][name] = array.astype(object) if array.dtype.kind == "U" else array
    return golden
