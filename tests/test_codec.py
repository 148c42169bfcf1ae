"""The codec of a model: whole numbers everywhere, the same on every runtime, smaller files, and never a wrong value."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import boolean, numeric
from click.testing import CliRunner
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import numpy_helper
from test_vaez import assert_same_rows

import parvae
from parvae.cli import vae as command
from parvae.files import find_files
from parvae.schema import Schema
from parvae.sessions import Sessions
from parvae.vaez.bounds import Bound, Promise
from parvae.vaez.codec import EDGE_UNIT, FACTS, GRAPH, MAX_FEATURE, WHOLE, Codec, Mixture, piecewise_log2
from parvae.vaez.container import Reader
from parvae_export.codec import fit_codec
from parvae_export.codec_fit import Networks
from parvae_export.codec_graph import EXACT, MAX_HIDDEN, WholeLayer, exact_graph, whole_layers

GOLDEN = ROOT / "tests" / "golden" / "format-4-codec.vaez"
NAMES = ("size", "weight", "count", "member", "income")


def people(num_rows: int, seed: int) -> dict[str, Any]:
    """Columns that tell of one another: floats, one with nulls, counts with many zeros, a flag, a heavy tail."""
    frozen = np.random.RandomState(seed)  # a stream that numpy promises never to change
    size = frozen.normal(170.0, 10.0, num_rows).round(1)
    weight = (0.9 * size - 85.0 + frozen.normal(0.0, 4.0, num_rows)).round(1)
    count = np.where(frozen.rand(num_rows) < 0.6, 0, frozen.poisson(np.clip(weight / 8.0, 0.1, 30.0)))
    return {
        "size": size.astype("f4"),
        "weight": np.ma.MaskedArray(weight, mask=frozen.rand(num_rows) < 0.1),
        "count": count.astype("i4"),
        "member": weight + frozen.normal(0.0, 5.0, num_rows) > 68.0,
        "income": np.exp(frozen.normal(8.0 + 0.05 * (size - 170.0), 0.3, num_rows)).round(),
    }


def table_of(rows: dict[str, Any]) -> pa.Table:
    return pa.table(
        {
            name: pa.array(np.ma.getdata(column), mask=np.ma.getmaskarray(column) if np.ma.isMA(column) else None)
            for name, column in rows.items()
        }
    )


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """Fitted to 4,000 people for a few seconds."""
    path = tmp_path_factory.mktemp("codec") / "people.parquet"
    pq.write_table(table_of(people(4_000, seed=0)), path)
    columns = [boolean(name) if name == "member" else numeric(name) for name in NAMES]
    schema = Schema(columns=tuple(columns), num_rows=4_000)
    found, report = fit_codec(schema, find_files([str(path)]), seed=0, max_steps=400)
    assert (report.num_rows, report.num_columns) == (4_000, 5)
    assert tuple(found.names) == NAMES
    return found


class WithCodec:
    """As much of a model as the codec needs."""

    def __init__(self, codec: Codec | None) -> None:
        self.codec = codec

    def require_codec(self) -> Codec:
        assert self.codec is not None
        return self.codec


@pytest.fixture(scope="session")
def model(codec: Codec) -> Any:
    return WithCodec(codec)


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
    num_features = 3 * codec.inputs.shape[1]
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
        features = rng.integers(-MAX_FEATURE, MAX_FEATURE + 1, (500, 3 * codec.inputs.shape[1])).astype(np.float32)
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


@pytest.mark.parametrize(
    "bounds", [None, {"*": "rel:0.01"}, {"size": "0.5", "weight": "pw:0.01", "income": "digits:2"}]
)
def test_rows_of_the_same_kind_take_less_and_come_back(model: Any, bounds: dict[str, str] | None) -> None:
    for num_rows, share in ((200, 0.94), (3_000, 0.97)):
        rows = people(num_rows, seed=1)
        alone = parvae.compress(rows, bounds=bounds)
        blob = parvae.compress(rows, bounds=bounds, model=model)
        assert len(blob) < share * len(alone)
        found = parvae.decompress(blob, model=model)
        if bounds is None:
            assert_same_rows(found, rows)
        else:
            assert_same_rows(found, parvae.decompress(alone))  # the same steps


def test_few_columns_others_another_order_and_parts_of_them(model: Any) -> None:
    rows = people(900, seed=2)
    rows["city"] = np.array(["Köln", None, "Roma"] * 300, dtype=object)
    rows["pixels"] = np.arange(2_700, dtype="u1").reshape(900, 3)
    chosen = {name: rows[name] for name in ("city", "income", "pixels", "weight", "member")}
    blob = parvae.compress(chosen, model=model, block_rows=400)
    assert_same_rows(parvae.decompress(blob, model=model), chosen)
    found = parvae.decompress(blob, model=model, columns=["income", "city"], blocks=[1])
    assert_same_rows(found, {name: chosen[name][400:800] for name in ("income", "city")})
    table = table_of(people(500, seed=3))
    assert parvae.decompress(parvae.compress(table, model=model), model=model).equals(table)


@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_array_comes_back_bit_by_bit(codec: Codec, data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(0, 30))
    rows: dict[str, Any] = {}
    for name in NAMES:
        dtype = data.draw(st.sampled_from(["?", "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8"]))
        values = data.draw(hnp.arrays(dtype, num_rows))
        mask = data.draw(st.none() | hnp.arrays("?", num_rows))
        rows[name] = values if mask is None or not mask.any() else np.ma.MaskedArray(values, mask=mask)
    model: Any = WithCodec(codec)
    assert_same_rows(parvae.decompress(parvae.compress(rows, model=model, block_rows=17), model=model), rows)


@given(
    values=hnp.arrays(st.sampled_from(["f4", "f8"]), st.integers(1, 60)),
    bound=st.sampled_from(["abs:0.01", "abs:1e-300", "abs:1e30", "pw:1e-3", "pw:0.4", "digits:3", "rel:0.01"]),
)
@settings(deadline=None, max_examples=80)
def test_every_float_is_within_its_bound(codec: Codec, values: Any, bound: str) -> None:
    model: Any = WithCodec(codec)
    blob = parvae.compress({"size": values, "income": values}, bounds={"*": bound}, model=model)
    settled = bounds_of(blob)
    for name, again in parvae.decompress(blob, model=model).items():
        wide, back = values.astype(np.float64), again.astype(np.float64)
        finite = np.isfinite(wide)
        assert np.array_equal(wide[~finite], back[~finite], equal_nan=True)
        with np.errstate(over="ignore", invalid="ignore"):
            is_pointwise = settled[name].promise in (Promise.POINTWISE, Promise.DIGITS)
            reach = settled[name].pointwise * np.abs(wide) if is_pointwise else settled[name].value
            assert ((np.abs(wide - back) <= reach) | (wide == back))[finite].all()


def test_noise_on_what_the_graph_gives_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = people(500, seed=4)
    blob = parvae.compress(rows, model=model, bounds={"size": "0.5"})
    wanted = parvae.decompress(blob, model=model)
    exact, rng = Sessions.run, np.random.default_rng(0)

    def noisy(self: Sessions, graph: str, inputs: Any, **options: Any) -> dict[str, NDArray[Any]]:
        found = exact(self, graph, inputs, **options)
        return {name: (out + rng.uniform(-1e-5, 1e-5, out.shape)).astype(out.dtype) for name, out in found.items()}

    monkeypatch.setattr(Sessions, "run", noisy)
    assert_same_rows(parvae.decompress(blob, model=model), wanted)


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
        dataclasses.replace(codec, means=codec.means + 1e-12),
        dataclasses.replace(codec, names=["other", *codec.names[1:]]),
        dataclasses.replace(codec, weights_digest="0" * 64),
    ]
    assert len({each.id for each in (codec, *others)}) == 4


def test_another_model_or_none_is_an_error_that_names_both(codec: Codec, model: Any) -> None:
    blob = parvae.compress(people(300, seed=5), model=model)
    name = codec.id.hex()[:12]
    with pytest.raises(parvae.WrongModelError, match=f"{name} of a model; give that model.vae"):
        parvae.decompress(blob)
    other: Any = WithCodec(dataclasses.replace(codec, means=codec.means + 1.0))
    with pytest.raises(parvae.WrongModelError, match=f"{name} .* has {other.codec.id.hex()[:12]}"):
        parvae.decompress(blob, model=other)
    with pytest.raises(parvae.SettingError, match="none was given"):
        parvae.compress(people(10, seed=5), carry_model=True)


def test_a_file_may_carry_its_codec(model: Any) -> None:
    rows = people(1_000, seed=6)
    blob = parvae.compress(rows, model=model, carry_model=True)
    assert_same_rows(parvae.decompress(blob), rows)
    without = parvae.compress(rows, model=model)
    assert 0 < len(blob) - len(without) < 60_000


def test_a_flip_of_any_byte_and_any_cut_is_an_error(model: Any) -> None:
    blob = parvae.compress(people(150, seed=7), model=model)
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged), model=model)
    for size in range(0, len(blob), 5):
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(blob[:size], model=model)


def test_damage_of_the_codec_that_a_file_carries_is_an_error() -> None:
    blob = GOLDEN.read_bytes()
    for position in range(0, len(blob), 97):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged))


def test_whole_blocks_are_saved_from_a_file_that_is_cut_off(model: Any) -> None:
    rows = people(1_000, seed=8)
    blob = parvae.compress(rows, model=model, block_rows=250)
    found = parvae.decompress(blob[: len(blob) * 3 // 4], model=model, salvage=True)
    num_rows = len(found["size"])
    assert num_rows in (500, 750)
    assert_same_rows(found, {name: column[:num_rows] for name, column in rows.items()})


def test_the_golden_file_decodes_for_ever() -> None:
    assert_same_rows(parvae.decompress(GOLDEN.read_bytes()), people(400, seed=9))


def test_a_damaged_codec_of_a_bundle_says_so(codec: Codec) -> None:
    with pytest.raises(parvae.BundleError, match="export the bundle anew"):
        Codec.from_members(codec.members()[FACTS][:100], codec.graph)


def test_the_commands_from_the_checkpoint_to_the_rows(
    mixed_run: Path, mixed_table: pa.Table, mixed_bundle: Path, tmp_path: Path
) -> None:
    data, bundle, packed = tmp_path / "rows.parquet", tmp_path / "model.vae", tmp_path / "rows.vaez"
    pq.write_table(mixed_table, data)

    def run(*arguments: object) -> dict[str, Any]:
        done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        result: dict[str, Any] = json.loads(done.output)
        return result

    exported = run("export", mixed_run / "ckpt.pt", "-o", bundle, "--codec", data)
    assert exported["codec_num_rows"] == mixed_table.num_rows
    assert run("info", bundle)["codec"] == f"{exported['codec_num_columns']} columns"
    assert run("selftest", bundle)["passed"]
    figures = run("compress", data, "-o", packed, "--model", bundle, "--verify")
    assert figures["verified"]
    assert figures["compressed_bytes"] < run("compress", data, "-o", tmp_path / "alone.vaez")["compressed_bytes"]
    described = run("info", packed)
    assert (described["format"], described["carries_codec"]) == (4, False)
    run("decompress", packed, "-o", tmp_path / "again.parquet", "--model", bundle)
    assert pq.read_table(tmp_path / "again.parquet").equals(mixed_table)
    failed = CliRunner().invoke(command, ["decompress", str(packed), "-o", str(tmp_path / "no.parquet")])
    assert failed.exit_code == 1
    assert "of a model; give that model.vae with --model" in failed.output
    assert not (tmp_path / "no.parquet").exists()
    run("compress", data, "-o", packed, "--model", bundle, "--carry-model")
    run("decompress", packed, "-o", tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(mixed_table)

    model = parvae.load(bundle)
    assert model.decompress(model.compress(mixed_table)).equals(mixed_table)
    assert model.model_id == parvae.load(mixed_bundle).model_id
    with pytest.raises(parvae.BundleError, match="has no codec; export it with `vae export"):
        parvae.load(mixed_bundle).compress(mixed_table)


def test_data_that_no_codec_can_be_fitted_to_says_so(tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    pq.write_table(table_of(people(100, seed=0)), path)
    schema = Schema(columns=(numeric("size"),), num_rows=100)
    with pytest.raises(parvae.DataError, match="needs 256 rows, and there are 100"):
        fit_codec(schema, find_files([str(path)]), seed=0)
    other = Schema(columns=(numeric("length"),), num_rows=100)
    with pytest.raises(parvae.DataError, match="shares no columns of numbers"):
        fit_codec(other, find_files([str(path)]), seed=0)


def bounds_of(blob: bytes) -> dict[str, Bound]:
    head = Reader(io.BytesIO(blob)).head
    return {column["name"]: Bound.parse(column["bound"]) for column in head["columns"]}
