"""Rewritten graphs: fewer nodes, the same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from parvae.sessions import open_session
from parvae_export.simplify import simplify

VALUES = np.array([[-np.inf, -1e30, -200.0, -20.0], [-1.0, -1e-3, 0.0, 1e-3], [1.0, 19.0, 21.0, 88.0]], "f4")


class Softplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.linear(x), dim=1)


class Shared(Gated):
    """A layer whose output is also used whole."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([functional.glu(self.linear(x), dim=1), self.linear(x)], dim=1)


class Twice(Gated):
    """A layer that is passed twice, as the encoder is where groups of columns are hidden in turn."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.linear(x), dim=1) - functional.glu(self.linear(-2.0 * x), dim=1)


def exported(module: nn.Module) -> onnx.ModelProto:
    torch.manual_seed(0)
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 4),),
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "batch"},),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model.SerializeToString(), threads=1).run(["y"], {"x": x})[0])


def num_nodes(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of its own affairs
def test_a_softplus_is_taken_apart_and_stays_finite() -> None:
    before = exported(Softplus())
    after = simplify(before)
    assert num_nodes(before)["Softplus"] == 1
    assert not {"Softplus", "Greater", "Where"} & set(num_nodes(after))
    wanted = functional.softplus(torch.from_numpy(VALUES)).numpy()
    np.testing.assert_allclose(run(after, VALUES), wanted, rtol=1e-6, atol=1e-7)
    assert np.isnan(run(after, np.full((1, 4), np.nan, "f4"))).all()


@pytest.mark.filterwarnings("ignore")
def test_a_gated_layer_becomes_two_without_a_split() -> None:
    module = Gated()
    before = exported(module)
    after = simplify(before)
    assert num_nodes(before)["Split"] == 1
    assert num_nodes(after) == {"Gemm": 2, "Sigmoid": 1, "Mul": 1}
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    np.testing.assert_allclose(run(after, x), module(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert sum(np.prod(tensor.dims) for tensor in after.graph.initializer) == 4 * 6 + 6, "no weight is stored twice"


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_is_passed_twice_keeps_one_set_of_weights() -> None:
    module = Twice()
    after = simplify(exported(module))
    onnx.checker.check_model(after, full_check=True)
    assert num_nodes(after)["Gemm"] == 4
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    np.testing.assert_allclose(run(after, x), module(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)
    weights = [tensor for tensor in after.graph.initializer if len(tensor.dims)]
    assert sum(np.prod(tensor.dims) for tensor in weights) == 4 * 6 + 6


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_is_also_used_whole_stays() -> None:
    before = exported(Shared())
    assert num_nodes(simplify(before)) == num_nodes(before)


def test_a_split_that_is_not_in_halves_stays() -> None:
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [3, 4], [0.5] * 12)]
    weights.append(helper.make_tensor("b", TensorProto.FLOAT, [3], [0.5] * 3))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["linear"], transB=1),
        helper.make_node("Split", ["linear"], ["y", "rest"], axis=1, num_outputs=2),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 4), ("y", 2), ("rest", 1))
    ]
    graph = helper.make_graph(nodes, "uneven", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert num_nodes(simplify(model)) == num_nodes(model)
