"""Category values that are told by their hash: the same in training, in the graphs, and in onnxruntime's operator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from builders import architecture, category, numeric, random_raw, schema_of
from hypothesis import given, settings
from onnx import TensorProto, helper

import parvae
from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, UNSEEN_CODE, CategoryFacts, Column
from parvae_export.graphs import ScoreGraph
from parvae_export.onnx_graph import HASH_DOMAIN, HASH_OP, to_onnx
from parvae_export.parity import check_parity
from parvae_export.rows import edge_rows
from parvae_pipeline.hashing import murmur3
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.reader import encode

NUM_BUCKETS = 8
WORDS = [f"word {number}" for number in range(100)]


def hashed_by_onnxruntime(texts: list[str]) -> list[int]:
    graph = helper.make_graph(
        [helper.make_node(HASH_OP, ["x"], ["y"], domain=HASH_DOMAIN, positive=1, seed=0)],
        "hash",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info("y", TensorProto.UINT32, [None])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(HASH_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (hashes,) = session.run(None, {"x": np.array(texts, dtype=object)})
    return np.asarray(hashes).tolist()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=20))
def test_the_hash_is_that_of_onnxruntime(texts: list[str]) -> None:
    assert murmur3(texts).tolist() == hashed_by_onnxruntime(texts)


def test_the_hash_is_that_of_its_author() -> None:
    assert murmur3(["", "hello", "hello, world"]).tolist() == [0, 0x248BFA47, 0x149BBB7F]


def hashed_column(buckets: tuple[int, ...]) -> Column:
    """Levels "a" and "b", and one for each of these buckets of eight."""
    bucket_of = dict(zip(WORDS, (murmur3(WORDS) % NUM_BUCKETS).tolist(), strict=True))
    named = [next(word for word in WORDS if bucket_of[word] == bucket) for bucket in buckets]
    facts = CategoryFacts(levels=("a", "b", *named), num_buckets=NUM_BUCKETS, buckets=buckets)
    return dataclasses.replace(category("word"), facts=facts)


def test_a_value_has_the_code_of_its_bucket_and_one_of_a_bucket_without_values_is_unseen() -> None:
    column = hashed_column((5, 2, 0))
    texts = ["b", None, *WORDS]
    (codes,) = encode(schema_of(column), pa.table({"word": texts})).values()
    code_of = {5: 2, 2: 3, 0: 4}
    wanted = [code_of.get(bucket, -1) for bucket in (murmur3(WORDS) % NUM_BUCKETS).tolist()]
    assert codes[:, 0].tolist() == [
        FIRST_LEVEL_CODE + 1,
        NULL_CODE,
        *(UNSEEN_CODE if code < 0 else FIRST_LEVEL_CODE + code for code in wanted),
    ]


@pytest.mark.parametrize("buckets", [(5, 2, 0), tuple(range(NUM_BUCKETS))])
def test_graphs_hash_as_training_does(buckets: tuple[int, ...]) -> None:
    schema = schema_of(numeric(), category(), hashed_column(buckets), hashed_column((1,)))
    schema = dataclasses.replace(
        schema, columns=tuple(dataclasses.replace(column, name=str(n)) for n, column in enumerate(schema))
    )
    torch.manual_seed(0)
    model = VariationalAutoencoder(schema, architecture()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = {name: values.numpy() for name, values in random_raw(schema, 64).items()}
    if len(buckets) == NUM_BUCKETS:  # then no value is unseen
        words = rows["category"][:, 1]
        words[words == UNSEEN_CODE] = NULL_CODE
    graph = ScoreGraph(model)
    exported = to_onnx(
        graph,
        [torch.from_numpy(rows[name][:3]) for name in graph.input_names],
        input_names=graph.input_names,
        output_names=graph.output_names,
        schema=schema,
        role="score",
    )
    assert check_parity("score", graph, exported, rows)
    assert check_parity("score", graph, exported, edge_rows(schema, rows))


def test_a_model_of_many_values_tells_them_by_their_hash(owners_bundle: Path) -> None:
    vae = parvae.load(owners_bundle)
    facts = vae.schema["owner"].facts_as(CategoryFacts)
    assert (facts.own_levels, facts.num_buckets) == ((), 64)
    # Values that it has never met weigh as the others of their buckets do.
    strangers = [f"stranger {number}" for number in range(200)]
    weight = 3.0 * (murmur3(strangers) % 2)
    right = vae.score({"owner": strangers, "weight": weight}).nats
    wrong = vae.score({"owner": strangers, "weight": 3.0 - weight}).nats
    assert np.mean(wrong > right) > 0.95
    again = vae.reconstruct({"owner": strangers, "weight": weight})
    assert set(again["owner"]) <= set(facts.levels)
    assert set(vae.sample(500, seed=0)["owner"]) <= {f"owner {number}" for number in range(1_000)}
