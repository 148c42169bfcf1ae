"""Rewriting what torch's exporter spells out: the same function in fewer and cheaper nodes of standard ONNX.

Measured with onnxruntime 1.31 on one core: Softplus takes 11 ns a number and its parts 2.6; to split the output of a
linear layer in two copies all its numbers, and keeps onnxruntime from joining a sigmoid to the layer before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnxscript import ir
from onnxscript.rewriter import pattern, rewrite


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after every rule."""
    return rewrite(model, pattern_rewrite_rules=RULES)


def _guarded_softplus(op: Any, x: Any, limit: Any) -> Any:
    return op.Where(op.Greater(x, limit), x, op.Softplus(x))


def _softplus_in_parts(op: Any, x: Any, limit: Any) -> Any:
    """max(x, 0) + log(1 + exp(-|x|)): finite for every x, so that it needs no guard."""
    one = op.Constant(value_float=1.0)
    return op.Add(op.Relu(x), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), one)))


def _split_linear(op: Any, x: Any, weight: Any, bias: Any) -> Any:
    linear = op.Gemm(x, weight, bias, transB=1, _outputs=["linear"])
    return op.Split(linear, axis=1, num_outputs=2, _outputs=["first", "second"])


def _two_linears(op: Any, x: Any, weight: Any, bias: Any, **_: Any) -> Any:
    return [op.Gemm(x, _half(op, weight, index), _half(op, bias, index), transB=1) for index in range(2)]


def _half(op: Any, value: Any, index: int) -> Any:
    """One half of an initializer; layers that are passed more than once, as in strangeness, share it."""
    name = f"{value.name}.{index}"
    known = value.graph.initializers.get(name)
    return (
        op.initializer(ir.tensor(np.split(value.const_value.numpy(), 2)[index], name=name)) if known is None else known
    )


def _has_even_weights(context: Any, weight: Any, bias: Any, linear: Any, **_: Any) -> bool:
    constant = weight.const_value is not None and bias.const_value is not None
    return constant and weight.shape[0] % 2 == 0 and len(linear.uses()) == 1


RULES: Sequence[pattern.RewriteRule] = (
    pattern.RewriteRule(_guarded_softplus, _softplus_in_parts),
    pattern.RewriteRule(_split_linear, _two_linears, _has_even_weights),
)
