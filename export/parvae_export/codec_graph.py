"""The exact graph of a codec: networks in whole numbers, held in float32, and the proof that no sum leaves them.

Every layer is a product with whole weights, a whole bias, a power of two, and the floor; hidden units are cut at 0 and
1,023. A float32 holds every whole number up to 2**24, so sums that stay below it are the same in any order.

Letters in shapes: C columns, I inputs and O outputs of a layer, F features, P parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from parvae.errors import BundleError
from parvae.vaez.codec import FEATURE_UNIT, MAX_FEATURE
from parvae_export.codec_fit import OUTPUT_OFFSETS, OUTPUT_UNITS, Networks
from parvae_export.onnx_graph import BATCH, IR_VERSION, OPSET

EXACT = 1 << 24
"""A float32 holds all whole numbers below."""
HIDDEN_UNIT, MAX_HIDDEN = 64, 1023
MAX_OCTAVES = 14
"""Weights are not finer than 2**-14."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeLayer:
    """floor((x @ weights + biases) * factors) for every column; all but `factors` are whole numbers."""

    weights: NDArray[np.float32]
    """(C, I, O)"""
    biases: NDArray[np.float32]
    """(C, O)"""
    factors: NDArray[np.float32]
    """(C, O) powers of two."""
    max_input: int

    def require_exact(self) -> None:
        """Raise BundleError unless no sum of any column and output can reach 2**24."""
        reach = np.abs(self.weights.astype(np.float64)).sum(axis=1) * self.max_input
        reach += np.abs(self.biases.astype(np.float64))
        for name, values in (("weights", self.weights), ("biases", self.biases)):
            if not np.array_equal(values, np.rint(values)):
                raise BundleError(f"the exact graph has {name} that are no whole numbers; this is a bug of parvae")
        if reach.max() >= EXACT:
            column, output = np.unravel_index(int(reach.argmax()), reach.shape)
            raise BundleError(
                f"sums of the exact graph may reach {reach.max():.0f} (column {column}, output {output}), beyond "
                f"{EXACT}; leave the column out of the codec"
            )


def whole_layers(networks: Networks) -> list[WholeLayer]:
    """The layers of `networks`, each weight as fine as the sums allow.

    Raises BundleError when they cannot be kept exact.
    """
    pairs = [
        (weight.detach().double().numpy(), bias.detach().double().numpy()[:, 0])
        for weight, bias in zip(networks.weights, networks.biases, strict=True)
    ]
    last_weight, last_bias = pairs[-1]
    pairs[-1] = (last_weight * OUTPUT_UNITS, last_bias * OUTPUT_UNITS + OUTPUT_OFFSETS)
    units = [FEATURE_UNIT] + [HIDDEN_UNIT] * (len(pairs) - 1)
    reaches = [MAX_FEATURE] + [MAX_HIDDEN] * (len(pairs) - 1)
    outputs = [HIDDEN_UNIT] * (len(pairs) - 1) + [1]
    layers = [
        _whole_layer(weight, bias, unit=unit, max_input=reach, output_unit=output)
        for (weight, bias), unit, reach, output in zip(pairs, units, reaches, outputs, strict=True)
    ]
    for layer in layers:
        layer.require_exact()
    return layers


def weights_digest(layers: Sequence[WholeLayer]) -> str:
    """SHA-256 of the whole numbers of the layers."""
    digest = hashlib.sha256()
    for layer in layers:
        for values in (layer.weights, layer.biases, layer.factors):
            digest.update(f"{values.shape}".encode() + np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()


def _whole_layer(
    weight: NDArray[np.float64], bias: NDArray[np.float64], *, unit: int, max_input: int, output_unit: int
) -> WholeLayer:
    """One layer whose inputs are in 1 / `unit`, and whose outputs shall be in 1 / `output_unit`."""
    reach = np.abs(weight).sum(axis=1) * max_input + np.abs(bias) * unit
    # Rounding may add half a step a weight, and the floor is made to round by half a step of the output.
    slack = 0.5 * weight.shape[1] * max_input + 1.0
    octaves = np.floor(np.log2((EXACT - 1 - slack) / np.maximum(reach + unit / output_unit, 1e-9)))
    scales = np.exp2(np.minimum(octaves, MAX_OCTAVES))
    factors = output_unit / (unit * scales)
    biases = np.rint(bias * unit * scales) + np.floor(0.5 / factors)
    return WholeLayer(
        weights=np.rint(weight * scales[:, None, :]).astype(np.float32),
        biases=biases.astype(np.float32),
        factors=factors.astype(np.float32),
        max_input=max_input,
    )


def exact_graph(layers: Sequence[WholeLayer]) -> bytes:
    """ONNX of features (B, F) and the number of a column to its parameters (B, P)."""
    initializers, nodes = [], []
    here = "features"
    for place, layer in enumerate(layers):
        for name, values in (("weights", layer.weights), ("biases", layer.biases), ("factors", layer.factors)):
            initializers.append(numpy_helper.from_array(values, f"{name}_{place}"))
            nodes.append(helper.make_node("Gather", [f"{name}_{place}", "column"], [f"{name}_{place}_of"], axis=0))
        nodes.append(helper.make_node("MatMul", [here, f"weights_{place}_of"], [f"products_{place}"]))
        nodes.append(helper.make_node("Add", [f"products_{place}", f"biases_{place}_of"], [f"sums_{place}"]))
        nodes.append(helper.make_node("Mul", [f"sums_{place}", f"factors_{place}_of"], [f"scaled_{place}"]))
        is_last = place == len(layers) - 1
        here = "parameters" if is_last else f"floor_{place}"
        nodes.append(helper.make_node("Floor", [f"scaled_{place}"], [here]))
        if not is_last:
            nodes.append(helper.make_node("Clip", [here, "zero", "most"], [f"hidden_{place}"]))
            here = f"hidden_{place}"
    initializers.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
    initializers.append(numpy_helper.from_array(np.array(MAX_HIDDEN, np.float32), "most"))
    num_features, num_parameters = layers[0].weights.shape[1], layers[-1].weights.shape[2]
    graph = helper.make_graph(
        nodes,
        "decode_exact",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [BATCH, num_features]),
            helper.make_tensor_value_info("column", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("parameters", TensorProto.FLOAT, [BATCH, num_parameters])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "parvae"
    helper.set_model_props(model, {"parvae.format": "1", "parvae.role": "decode_exact"})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
