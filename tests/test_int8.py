"""Bundles with hidden layers in 8 bits: what they say, what they keep, and when there is nothing to put there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from conftest import DIGITS, train_small
from onnx import TensorProto, helper

import parvae
from parvae.bundle import GRAPHS, Bundle, read_bundle
from parvae.errors import SettingError
from parvae.selftest import describe, replay
from parvae_export.export import ExportResult, export
from parvae_export.int8 import in_int8


@pytest.fixture(scope="module")
def exported(mixed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(mixed_run / "ckpt.pt", tmp_path_factory.mktemp("int8") / "model.vae", int8=True)


@pytest.fixture(scope="module")
def bundle(exported: ExportResult) -> Bundle:
    return read_bundle(str(exported.path))


def int8_operators(bundle: Bundle, graph: str) -> set[str]:
    """Operators that read a weight stored in 8 bits."""
    model = onnx.load_model_from_string(bundle.members[f"{graph}.onnx"])
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    weights = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    return {node.op_type for node in model.graph.node if weights & set(node.input[1:2])}


def test_hidden_layers_of_every_graph_are_in_8_bits_and_replay_their_golden_rows(bundle: Bundle) -> None:
    assert all(int8_operators(bundle, graph) == {"Gemm"} for graph in GRAPHS)
    assert all(check.passed for check in replay(bundle))
    assert describe(bundle)["hidden_layers"] == "int8"


def test_the_report_says_what_8_bits_change(exported: ExportResult, bundle: Bundle) -> None:
    report = exported.int8
    assert report is not None
    assert bundle.manifest["int8"] == dataclasses.asdict(report)
    assert report.score_rank_correlation > 0.99
    assert 0.0 < report.score_mean_difference < report.score_largest_difference < 3.0
    assert 0.0 < report.code_mean_difference < 0.5
    assert report.times_faster > 0.0


def test_scores_are_near_those_of_float32_and_judged_by_thresholds_of_their_own(
    exported: ExportResult, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    int8, plain = parvae.load(str(exported.path)), parvae.load(mixed_bundle)
    assert int8.model_id != plain.model_id
    found, wanted = int8.score(mixed_table), plain.score(mixed_table)
    assert np.any(found.score != wanted.score)
    assert np.corrcoef(found.score, wanted.score)[0, 1] > 0.99
    thresholds = [read_bundle(str(path)).manifest["calibration"]["scores"] for path in (exported.path, mixed_bundle)]
    assert len(thresholds[0]) == len(thresholds[1])
    assert thresholds[0] != thresholds[1]


def test_a_row_does_not_depend_on_its_batch(exported: ExportResult, mixed_table: pa.Table) -> None:
    vae = parvae.load(str(exported.path))
    together = vae.score(mixed_table.slice(0, 50)).score
    alone = [float(vae.score(mixed_table.slice(index, 1)).score[0]) for index in range(50)]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-3)


def test_convolutions_are_put_in_8_bits_too(tmp_path: Path) -> None:
    run = train_small(DIGITS, tmp_path / "run", label="digit", max_steps=10, network="image", channels=16)
    bundle = read_bundle(str(export(run / "ckpt.pt", int8=True).path))
    assert int8_operators(bundle, "decode") == {"Conv"}
    assert all(check.passed for check in replay(bundle))


def test_a_golden_number_far_off_fails_all_the_same(bundle: Bundle) -> None:
    members = {**bundle.members, "score.onnx": _doubled(bundle.members["score.onnx"])}
    failed = [check for check in replay(dataclasses.replace(bundle, members=members)) if not check.passed]
    assert {check.graph for check in failed} == {"score"}


def test_a_model_without_hidden_layers_cannot_be_put_in_8_bits() -> None:
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", [shape], [result])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    with pytest.raises(SettingError, match=r"this model has none; leave --int8 out"):
        in_int8({"encode": content}, {"encode": {"x": np.zeros((4, 2), np.float32)}})


def _doubled(content: bytes) -> bytes:
    """The graph with its first output, the score, twice what it was."""
    model = onnx.load_model_from_string(content)
    (node,) = (node for node in model.graph.node if model.graph.output[0].name in node.output)
    index = list(node.output).index(model.graph.output[0].name)
    node.output[index] = "once"
    model.graph.node.append(helper.make_node("Add", ["once", "once"], [model.graph.output[0].name]))
    return model.SerializeToString()
