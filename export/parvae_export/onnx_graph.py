"""From a torch module to a clean ONNX graph: opset 18, IR 8, weights inside, dynamic batch, no chance, no paths.

Opset 18 with IR version 8 loads in onnxruntime 1.16 and later; what torch writes by default does not.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from parvae.errors import BundleError
from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, NULL_TEXT, UNSEEN_CODE, CategoryFacts, Input, Role, Schema
from parvae_export.simplify import simplify
from parvae_pipeline.hashing import bucket_codes

OPSET = 18
IR_VERSION = 8
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3
BATCH = "batch"
ALLOWED_DOMAINS = {"", "ai.onnx", ML_DOMAIN}
HASH_DOMAIN, HASH_OP = "com.microsoft", "MurmurHash3"
"""Standard ONNX has no hash of a string; all builds of onnxruntime with its contributed operators have this one."""
RANDOM_OPS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
UNSEEN_TEXT = "\ufffd"
"""Never written by decode or sample: no code of theirs is UNSEEN_CODE."""


def to_onnx(
    graph: nn.Module,
    example: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    schema: Schema,
    role: str,
) -> onnx.ModelProto:
    """Export `graph`, put strings in place of category codes, and state the schema in the graph's metadata.

    Raises BundleError when a batch dimension is fixed, an operator draws random numbers or is not of standard ONNX.
    """
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            tuple(example),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=_dynamic_shapes(graph, example),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = simplify(program.model_proto)
    _strip(model)
    category = next((block for block in schema.inputs if block.role is Role.CATEGORY), None)
    if category is not None:
        if category.name in input_names:
            _strings_in(model, category)
        if category.name in output_names:
            _strings_out(model, category)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "parvae", ""
    helper.set_model_props(
        model,
        {"parvae.format": "1", "parvae.role": role, "parvae.schema": json.dumps(schema.to_json(), ensure_ascii=False)},
    )
    check_graph(model, role)
    return model


def check_graph(model: onnx.ModelProto, role: str) -> None:
    """Raise BundleError unless the graph is valid, deterministic, portable and free in its batch size."""
    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:
        if node.op_type in RANDOM_OPS:
            raise BundleError(f"the {role} graph draws random numbers ({node.op_type}); noise must be an input")
        if node.domain not in ALLOWED_DOMAINS and (node.domain, node.op_type) != (HASH_DOMAIN, HASH_OP):
            raise BundleError(f"the {role} graph needs the operators of {node.domain}; only standard ONNX is portable")
    for value in [*model.graph.input, *model.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param != BATCH:
            raise BundleError(f"the {role} graph fixes the batch of {value.name} to {first.dim_value}")
    for initializer in model.graph.initializer:
        if initializer.data_location == TensorProto.EXTERNAL:
            raise BundleError(f"the {role} graph keeps {initializer.name} in another file")


def _dynamic_shapes(graph: nn.Module, example: Sequence[Tensor]) -> Any:
    shapes = tuple({0: BATCH} for _ in example)
    kinds = [parameter.kind for parameter in inspect.signature(graph.forward).parameters.values()]
    # To torch.export, forward(*tensors) has one argument, a tuple.
    return (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


def _strip(model: onnx.ModelProto) -> None:
    """Remove what names the machine: every node carries stack traces with paths and source lines."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.ClearField("doc_string")


def _strings_in(model: onnx.ModelProto, block: Input) -> None:
    """Let the graph take category strings: split the columns, look each one up, and join the codes."""
    (codes,) = [value for value in model.graph.input if value.name == block.name]
    inner = f"{block.name}.codes"
    for node in model.graph.node:
        node.input[:] = [inner if name == block.name else name for name in node.input]
    codes.type.tensor_type.elem_type = TensorProto.STRING
    parts = [f"{inner}.{index}" for index in range(len(block.columns))]
    nodes = [
        helper.make_node("Split", [block.name], [f"{part}.text" for part in parts], axis=1, num_outputs=len(parts))
    ]
    for part, column in zip(parts, block.columns, strict=True):
        facts = column.facts_as(CategoryFacts)
        listed = f"{part}.listed" if facts.buckets else part
        nodes.append(
            helper.make_node(
                "LabelEncoder",
                [f"{part}.text"],
                [listed],
                domain=ML_DOMAIN,
                keys_strings=[NULL_TEXT, *facts.own_levels],
                values_int64s=[NULL_CODE, *range(FIRST_LEVEL_CODE, FIRST_LEVEL_CODE + len(facts.own_levels))],
                default_int64=UNSEEN_CODE,
            )
        )
        if facts.buckets:
            nodes.extend(_hashed(model, part, facts))
    nodes.append(helper.make_node("Concat", parts, [inner], axis=1))
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    _use(model, ML_DOMAIN, ML_OPSET)


def _hashed(model: onnx.ModelProto, part: str, facts: CategoryFacts) -> list[onnx.NodeProto]:
    """Nodes that put the code of a text's bucket where it is not listed (`part`.listed is UNSEEN_CODE)."""
    constants = {
        f"{part}.num_buckets": np.array(facts.num_buckets),
        f"{part}.bucket_codes": bucket_codes(facts),
        f"{part}.unseen": np.array(UNSEEN_CODE),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    _use(model, HASH_DOMAIN, 1)
    return [
        helper.make_node(HASH_OP, [f"{part}.text"], [f"{part}.hash"], domain=HASH_DOMAIN, positive=1, seed=0),
        helper.make_node("Cast", [f"{part}.hash"], [f"{part}.number"], to=TensorProto.INT64),
        helper.make_node("Mod", [f"{part}.number", f"{part}.num_buckets"], [f"{part}.bucket"]),
        helper.make_node("Gather", [f"{part}.bucket_codes", f"{part}.bucket"], [f"{part}.hashed"]),
        helper.make_node("Equal", [f"{part}.listed", f"{part}.unseen"], [f"{part}.is_unlisted"]),
        helper.make_node("Where", [f"{part}.is_unlisted", f"{part}.hashed", f"{part}.listed"], [part]),
    ]


def _strings_out(model: onnx.ModelProto, block: Input) -> None:
    """Let the graph give category strings: split the codes, look each column up, and join the texts."""
    (texts,) = [value for value in model.graph.output if value.name == block.name]
    inner = f"{block.name}.codes"
    for node in model.graph.node:
        node.output[:] = [inner if name == block.name else name for name in node.output]
        node.input[:] = [inner if name == block.name else name for name in node.input]
    texts.type.tensor_type.elem_type = TensorProto.STRING
    parts = [f"{inner}.{index}" for index in range(len(block.columns))]
    nodes = [helper.make_node("Split", [inner], parts, axis=1, num_outputs=len(parts))]
    for part, column in zip(parts, block.columns, strict=True):
        levels = column.facts_as(CategoryFacts).levels
        nodes.append(
            helper.make_node(
                "LabelEncoder",
                [part],
                [f"{part}.text"],
                domain=ML_DOMAIN,
                keys_int64s=[NULL_CODE, *range(FIRST_LEVEL_CODE, FIRST_LEVEL_CODE + len(levels))],
                values_strings=[NULL_TEXT, *levels],
                default_string=UNSEEN_TEXT,
            )
        )
    nodes.append(helper.make_node("Concat", [f"{part}.text" for part in parts], [block.name], axis=1))
    model.graph.node.extend(nodes)
    _use(model, ML_DOMAIN, ML_OPSET)


def _use(model: onnx.ModelProto, domain: str, version: int) -> None:
    """Let the model hold operators of a domain."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of its own affairs (torchvision is absent, pytree is deprecated)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
