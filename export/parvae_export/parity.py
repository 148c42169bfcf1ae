"""The gate: an exported graph must give the numbers that torch gives, or there is no bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from parvae.errors import BundleError
from parvae.rows import Arrays
from parvae.schema import Role, Schema
from parvae.selftest import Check, compare
from parvae.sessions import open_session
from parvae_export.graphs import Graph
from parvae_export.rows import category_texts, graph_inputs

BATCH_SIZES = (0, 1, 2, 7)


def check_parity(role: str, graph: Graph, exported: onnx.ModelProto, inputs: Arrays) -> list[Check]:
    """Compare on all rows of `inputs` at once, and on batches of 0, 1, 2 and 7 of them.

    `inputs` are as torch takes them. Raises BundleError naming the output, the size of the batch and the difference.
    """
    session = open_session(exported.SerializeToString(), threads=1)
    num_rows = len(next(iter(inputs.values())))
    checks: list[Check] = []
    # A value near 0 in a batch of one row may be rounded as its column is, where others are in the thousands.
    all_rows = run_torch(graph, inputs)
    for size in (*BATCH_SIZES, num_rows):
        batch = {name: array[:size] for name, array in inputs.items()}
        wanted = run_torch(graph, batch)
        fed = _as_fed(graph, batch)
        found = dict(zip(graph.output_names, session.run(list(graph.output_names), fed), strict=True))
        for name in graph.output_names:
            check = compare(role, name, np.asarray(found[name]), wanted[name], like=_floats(all_rows[name]))
            if not check.passed:
                raise BundleError(
                    f"the {role} graph disagrees with torch on {name!r} in a batch of {size} rows: difference "
                    f"{check.error:.3g}, allowed {check.limit:.3g}; no bundle was written. "
                    "Install the versions in constraints.txt, and report the model if that does not help"
                )
            checks.append(check)
    return checks


def _floats(values: NDArray[Any]) -> NDArray[Any] | None:
    return values if values.dtype.kind == "f" else None


@torch.no_grad()
def run_torch(graph: Graph, inputs: Arrays) -> Arrays:
    """What torch gives for `inputs`, as the exported graph should give it."""
    outputs = graph(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
    named = {name: value.numpy() for name, value in zip(graph.output_names, outputs, strict=True)}
    for block in graph.model.schema.inputs:
        if block.role is Role.CATEGORY and block.name in named:
            named[block.name] = category_texts(block.columns, named[block.name])
    return named


def _as_fed(graph: Graph, inputs: Arrays) -> Arrays:
    schema: Schema = graph.model.schema
    takes_columns = graph.input_names == graph.block_names
    return graph_inputs(schema, inputs) if takes_columns else inputs
