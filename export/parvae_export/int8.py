"""Hidden layers of verified graphs in 8 bits (static QDQ), and what that costs.

Only maps from hidden units to hidden units are quantised. The first layers see features with long tails and the heads
speak in nats: quantised too, they gained no speed that could be measured, and the score of an outlier of ADBench's
cardio was off by millions of nats; with hidden layers alone scores keep their order (Spearman 0.9999).
Weights take 7 bits, so that no pair of products overflows on processors without VNNI, and every machine agrees.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from parvae.errors import SettingError
from parvae.rows import Arrays
from parvae.sessions import Sessions, open_session

HIDDEN_WEIGHT = re.compile(r"\.(layers\.\d+\.linear|first|second|mix\.entry)\.weight")
"""Names of the weights between hidden units in `networks.py`."""
CALIBRATION_ROWS, BATCH_ROWS = 1_024, 256
TIMED_ROWS, TIMED_CALLS = 1_024, 9


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """What 8 bits change, over the calibration rows."""

    score_rank_correlation: float
    """Spearman's, of the scores before and after."""
    score_mean_difference: float
    score_largest_difference: float
    code_mean_difference: float
    """Mean of |difference| of the codes, in standard deviations of their posterior."""
    times_faster: float
    """Rows/s of the score graph on this machine and one thread, over those of float32. Below 2 as a rule: 8 bits gain
    only what hidden layers take, and densities and distances to known rows stay in float32."""


def in_int8(graphs: Mapping[str, bytes], rows: Mapping[str, Arrays]) -> dict[str, bytes]:
    """The graphs with their hidden layers in 8 bits; `rows` are inputs of each one, as onnxruntime takes them.

    Raises SettingError where no graph has a layer to quantise.
    """
    quantised = {role: _quantised(content, rows[role]) for role, content in graphs.items()}
    if quantised == dict(graphs):
        raise SettingError(
            "int8 quantises the layers between hidden layers, and this model has none; leave --int8 out, "
            "or train with --set model.depth=2"
        )
    return quantised


def compare_int8(before: Mapping[str, bytes], after: Mapping[str, bytes], rows: Arrays) -> Int8Report:
    """Scores and codes of `rows`, as onnxruntime takes them, by the graphs before and after."""
    pairs = [_scores_and_codes(graphs, rows) for graphs in (before, after)]
    (old, old_codes, stddev), (new, new_codes, _) = pairs
    difference = np.abs(new - old)
    return Int8Report(
        score_rank_correlation=_rank_correlation(old, new),
        score_mean_difference=float(difference.mean()),
        score_largest_difference=float(difference.max()),
        code_mean_difference=float((np.abs(new_codes - old_codes) / stddev).mean()),
        times_faster=_times_faster(before["score"], after["score"], rows),
    )


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    def __init__(self, rows: Arrays) -> None:
        num_rows = min(CALIBRATION_ROWS, len(next(iter(rows.values()))))
        self._batches = iter(
            {name: array[first : min(first + BATCH_ROWS, num_rows)] for name, array in rows.items()}
            for first in range(0, num_rows, BATCH_ROWS)
        )

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)


def _quantised(content: bytes, rows: Arrays) -> bytes:
    model = onnx.load_model_from_string(content)
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in ("Gemm", "MatMul", "Conv") and HIDDEN_WEIGHT.search(node.input[1])
    ]
    if not nodes:
        return content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            _Batches(rows),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return path.read_bytes()


def _scores_and_codes(
    graphs: Mapping[str, bytes], rows: Arrays
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    sessions = Sessions(graphs, threads=1, low_memory=False)
    outputs, posterior = sessions.run("score", rows), sessions.run("encode", rows)
    scores = outputs.get("strangeness", outputs["score"])
    return scores.astype(np.float64), posterior["mean"].astype(np.float64), posterior["stddev"].astype(np.float64)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if len(first) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _times_faster(before: bytes, after: bytes, rows: Arrays) -> float:
    batch = {name: np.resize(array, (TIMED_ROWS, *array.shape[1:])) for name, array in rows.items()}
    sessions = [open_session(content, threads=1) for content in (before, after)]
    seconds: list[list[float]] = [[], []]
    for _ in range(TIMED_CALLS):
        for session, taken in zip(sessions, seconds, strict=True):
            started_s = time.perf_counter()
            session.run(None, batch)
            taken.append(time.perf_counter() - started_s)
    old_s, new_s = (statistics.median(taken) for taken in seconds)
    return old_s / new_s
