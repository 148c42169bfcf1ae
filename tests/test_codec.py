"""The networks of a codec: whole numbers everywhere, the same on every runtime, known by what they compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from builders import numeric
from fitted_codecs import NAMES, measured, table_of, with_other_means
from numpy.typing import NDArray
from onnx import numpy_helper

import parvae
from parvae.files import find_files
from parvae.schema import Schema
from parvae.sessions import Sessions
from parvae.vaez.codec import EDGE_UNIT, FACTS, GRAPH, MAX_FEATURE, WHOLE, Codec, Mixture, piecewise_log2
from parvae_export.codec import fit_codec
from parvae_export.codec_fit import Networks
from parvae_export.codec_graph import EXACT, MAX_HIDDEN, WholeLayer, exact_graph, whole_layers


def whole_oracle(graph: bytes, features: NDArray[Any], column: int) -> NDArray[np.int64]:
    """The exact graph in int64, from the numbers in its file; shifts for powers of two."""
    weights = {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(graph).graph.initializer}
    found = features.astype(np.int64)
    for place in range(3):
        factors = weights[f"factors_{place}"][column].astype(np.float64)
        shifts = np.rint(-np.log2(factors)).astype(np.int64)
        assert np.array_equal(np.exp2(-shifts.astype(np.float64)), factors)
        found = found @ weights[f"weights_{place}"][column].astype(np.int64)
        found += weights[f"biases_{place}"][column].astype(np.int64)
        assert np.abs(found).max() < EXACT
        found = np.where(shifts >= 0, found >> np.maximum(shifts, 0), found << np.maximum(-shifts, 0))
        if place < 2:
            found = np.clip(found, 0, MAX_HIDDEN)
    return found


def runtime_variants() -> list[Any]:
    levels = onnxruntime.GraphOptimizationLevel
    return [
        (threads, level)
        for threads in (1, 2)
        for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_ALL)
    ]


def test_every_runtime_finds_what_whole_numbers_give(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    num_features = 3 * codec.columns.inputs.shape[1]
    features = rng.integers(-MAX_FEATURE, MAX_FEATURE + 1, (3_000, num_features))
    features[:100] = MAX_FEATURE * rng.choice([-1, 1], (100, num_features))
    for threads, level in runtime_variants():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.graph_optimization_level = threads, level
        session = onnxruntime.InferenceSession(codec.graph, options, providers=["CPUExecutionProvider"])
        for column in range(len(NAMES)):
            feeds = {"features": features.astype(np.float32), "column": np.array(column, np.int64)}
            for size in (1, 7, 3_000):
                part = {**feeds, "features": feeds["features"][:size]}
                (found,) = session.run(None, part)
                np.testing.assert_array_equal(found, whole_oracle(codec.graph, features[:size], column))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 3000.0])
def test_no_sum_reaches_2_to_the_24_whatever_the_weights(scale: float) -> None:
    networks = Networks(3, 9)
    for parameter in networks.parameters():
        parameter.data.mul_(scale)
    layers = whole_layers(networks)
    graph = exact_graph(layers)
    for column in range(3):  # inputs with the signs of the weights reach furthest
        features = MAX_FEATURE * np.sign(layers[0].weights[column].T)
        found = Sessions({"exact": graph}, threads=1, low_memory=False).run(
            "exact", {"features": features.astype(np.float32), "column": np.array(column)}
        )["parameters"]
        np.testing.assert_array_equal(found, whole_oracle(graph, features, column))


def test_a_layer_that_would_leave_the_whole_numbers_is_refused() -> None:
    ones = np.ones((2, 4, 3), np.float32)
    layer = WholeLayer(weights=ones, biases=ones[:, 0], factors=ones[:, 0], max_input=MAX_HIDDEN)
    layer.require_exact()
    too_large = dataclasses.replace(layer, weights=ones * (EXACT // (4 * MAX_HIDDEN) + 1))
    with pytest.raises(parvae.BundleError, match="beyond 16777216"):
        too_large.require_exact()
    with pytest.raises(parvae.BundleError, match="no whole numbers"):
        dataclasses.replace(layer, weights=0.5 * ones).require_exact()


def test_a_mixture_spreads_all_mass_over_the_bins_in_whole_numbers(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    for column in range(len(NAMES)):
        features = rng.integers(-MAX_FEATURE, MAX_FEATURE + 1, (500, 3 * codec.columns.inputs.shape[1])).astype(
            np.float32
        )
        parameters = Sessions({GRAPH: codec.graph}, threads=1, low_memory=False).run(
            GRAPH, {"features": features, "column": np.array(column)}
        )["parameters"]
        inner = np.sort(rng.integers(-4 * EDGE_UNIT, 4 * EDGE_UNIT, 30)).astype(np.float32)
        edges = np.concatenate([[-np.inf], inner, [np.inf]]).astype(np.float32)
        mixture = Mixture(codec, column, parameters, edges, [3, -1])
        below = np.stack([mixture.mass_below(np.full(500, place)) for place in range(len(edges))])
        assert np.array_equal(below, np.rint(below))
        assert not below[0].any()
        assert (below[-1] == WHOLE).all()
        assert (np.diff(below, axis=0) >= 0).all()


def test_the_logarithm_of_a_column_is_one_up_to_a_few_hundredths() -> None:
    values = np.array([-1e300, -3.0, -0.0, 0.0, 1e-9, 0.5, 1.0, 3.0, 1e6, 1e300])
    wanted = np.sign(values) * np.log2(1.0 + np.abs(values))
    np.testing.assert_allclose(piecewise_log2(values), wanted, atol=0.09)
    assert (np.diff(piecewise_log2(np.linspace(-50.0, 50.0, 9_999))) > 0).all()
    assert np.isnan(piecewise_log2(np.array([np.nan])))


def test_a_machine_that_computes_otherwise_is_told(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Sessions.run

    def other(self: Sessions, graph: str, inputs: Any, **options: Any) -> dict[str, NDArray[Any]]:
        return {name: out + (out == out.max()) for name, out in exact(self, graph, inputs, **options).items()}

    monkeypatch.setattr(Sessions, "run", other)
    with pytest.raises(parvae.BundleError, match="does not compute the exact graph"):
        Codec.from_bytes(codec.to_bytes())


def test_the_codec_is_known_by_what_it_computes(codec: Codec) -> None:
    again = Codec.from_bytes(codec.to_bytes())
    assert again.id == codec.id
    model = onnx.load_from_string(codec.graph)
    model.doc_string = "another file, the same numbers"
    assert dataclasses.replace(codec, graph=model.SerializeToString()).id == codec.id
    others = [
        with_other_means(codec, 1e-12),
        dataclasses.replace(codec, names=["other", *codec.names[1:]]),
        dataclasses.replace(codec, weights_digest="0" * 64),
    ]
    assert len({each.id for each in (codec, *others)}) == 4


def test_a_damaged_codec_of_a_bundle_says_so(codec: Codec) -> None:
    with pytest.raises(parvae.BundleError, match="export the bundle anew"):
        Codec.from_members(codec.members()[FACTS][:100], codec.graph)


def test_data_that_no_codec_can_be_fitted_to_says_so(tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    pq.write_table(table_of(measured(100, seed=0)), path)
    schema = Schema(columns=(numeric("size"),), num_rows=100)
    with pytest.raises(parvae.DataError, match="needs 256 rows, and there are 100"):
        fit_codec(schema, find_files([str(path)]), seed=0)
    other = Schema(columns=(numeric("length"),), num_rows=100)
    with pytest.raises(parvae.DataError, match="shares no columns of numbers"):
        fit_codec(other, find_files([str(path)]), seed=0)
