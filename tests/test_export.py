"""Export: parity with torch for every kind of column, clean graphs, calibration, and refusal."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import export_bundle, train_small
from hypothesis import HealthCheck, given, settings
from onnx import numpy_helper

import parvae
from parvae.bundle import read_bundle
from parvae.errors import BundleError
from parvae.images import encode_png
from parvae.schema import NumericFacts
from parvae_export.export import export
from parvae_export.graphs import GRAPHS, EncodeGraph, Graph
from parvae_export.onnx_graph import check_graph, to_onnx
from parvae_export.parity import check_parity
from parvae_export.rows import edge_rows, sampled_rows
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.model import Architecture, VariationalAutoencoder
from parvae_pipeline.priors import PRIORS, GaussianMixture
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of

NUMBERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "numeric": lambda generator, n: generator.normal(1e6, 1e-3, n),
    "nullable": lambda generator, n: generator.normal(1e6, 1e5, n),
    "whole": lambda generator, n: generator.integers(-5, 200, n),
    "heavy": lambda generator, n: np.append(generator.normal(0.0, 1.0, n - 1), 80.0),
    "long tail": lambda generator, n: np.exp(generator.normal(5.0, 3.0, n)),
    "counts": lambda generator, n: np.append(generator.geometric(0.3, n - 2) - 1, [0, 35]),
    "modes": lambda generator, n: np.where(np.arange(n) % 2, -9.0, 9.0) + generator.normal(size=n),
    "spiked": lambda generator, n: np.where(np.arange(n) % 5, 0.1, generator.normal(50.0, 3.0, n)),
    "spiked grid": lambda generator, n: np.where(np.arange(n) % 3, 40, generator.integers(-3, 99, n)),
}
KINDS = (*NUMBERS, "timestamp", "duration", "category", "boolean", "binary", "embedding", "bytes", "image", "png")


def column_of(kind: str, generator: np.random.Generator, num_rows: int) -> pa.Array:
    """A column of one kind, with whatever is awkward about it."""
    if kind in NUMBERS:
        values = NUMBERS[kind](generator, num_rows)
        return pa.array(values, mask=generator.random(num_rows) < 0.2 if kind == "nullable" else None)
    if kind in ("timestamp", "duration"):
        ticks = pa.array(1_700_000_000_000 + generator.integers(0, 10**10, num_rows))
        return ticks.cast(pa.timestamp("ms") if kind == "timestamp" else pa.duration("ms"))
    if kind == "category":
        return pa.array([None if value == 3 else f"níveau {value}" for value in generator.integers(0, 6, num_rows)])
    if kind == "boolean":
        return pa.array([None if value == 2 else bool(value) for value in generator.integers(0, 3, num_rows)])
    if kind == "embedding":
        return pa.FixedSizeListArray.from_arrays(pa.array(generator.normal(0, 30, 5 * num_rows).astype("f4")), 5)
    if kind == "png":
        return pa.array(encode_png(generator.integers(0, 256, (num_rows, 11, 9, 3)).astype("u1")), pa.large_binary())
    size, high = {"binary": (9, 2), "bytes": (7, 256), "image": (10 * 18 * 3, 256)}[kind]
    return pa.FixedSizeListArray.from_arrays(pa.array(generator.integers(0, high, size * num_rows).astype("u1")), size)


def model_of(
    kinds: list[str], prior: str, seed: int, surplus: tuple[int, ...] = ()
) -> tuple[VariationalAutoencoder, pa.Table]:
    """A model with random weights for a table of these kinds, started from its rows."""
    generator = np.random.default_rng(seed)
    columns = [column_of(kind, generator, 40) for kind in kinds]
    fields = [
        pa.field(f"{kind} {index}", column.type, metadata={"shape": "10,18,3"} if kind == "image" else None)
        for index, (kind, column) in enumerate(zip(kinds, columns, strict=True))
    ]
    table = pa.table(columns, schema=pa.schema(fields))
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    torch.manual_seed(seed)
    network = "image" if {"image", "png"} & set(kinds) else "table"
    model = VariationalAutoencoder(
        schema,
        Architecture(
            network=network,
            prior=prior,
            latent_size=3,
            width=8,
            depth=2,
            channels=16,
            num_components=3,
            surplus=surplus,
        ),
    )
    model.start_from({name: torch.tensor(array) for name, array in encode(schema, table).items()})
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may be right only because it starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
        if isinstance(model.prior, GaussianMixture):
            factors = torch.randn(3, 3, 3)
            model.prior.set_components(
                torch.tensor([0.2, 0.5, 0.3]), torch.randn(3, 3), factors @ factors.mT + torch.eye(3)
            )
    return model.eval(), table


@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    prior=st.sampled_from(sorted(PRIORS)),
    role=st.sampled_from(sorted(GRAPHS)),
    surplus=st.sampled_from([(), (1,), (0, 2)]),
    seed=st.integers(0, 99),
)
def test_any_schema_exports_with_the_numbers_of_torch(
    kinds: list[str], prior: str, role: str, surplus: tuple[int, ...], seed: int
) -> None:
    model, table = model_of(kinds, prior, seed, surplus)
    graph = GRAPHS[role](model)
    rows = {name: np.array(array) for name, array in encode(model.schema, table).items()}
    if graph.input_names != graph.block_names:
        sizes = {"z": 3 - len(surplus), "z_noise": model.prior.num_noise, "noise": model.num_noise}
        generator = np.random.default_rng(seed)
        rows = {name: generator.normal(size=(40, sizes[name])).astype("f4") for name in graph.input_names}
    exported = export_graph(graph, rows, role)
    assert check_parity(role, graph, exported, rows)
    if graph.input_names == graph.block_names:
        assert check_parity(role, graph, exported, edge_rows(model.schema, rows))


def export_graph(graph: Graph, rows: dict[str, np.ndarray], role: str) -> onnx.ModelProto:
    return to_onnx(
        graph,
        [torch.from_numpy(rows[name][:3]) for name in graph.input_names],
        input_names=graph.input_names,
        output_names=graph.output_names,
        schema=graph.model.schema,
        role=role,
    )


@pytest.mark.parametrize("role", GRAPHS)
def test_every_kind_of_column_exports_with_the_numbers_of_torch(role: str) -> None:
    model, table = model_of([kind for kind in KINDS if kind != "image"], "normal", 5)
    graph = GRAPHS[role](model)
    rows = {name: np.array(array) for name, array in encode(model.schema, table).items()}
    if graph.input_names != graph.block_names:
        sizes = {"z": model.latent_size, "z_noise": model.latent_size, "noise": model.num_noise}
        generator = np.random.default_rng(0)
        rows = {name: generator.normal(size=(40, sizes[name])).astype("f4") for name in graph.input_names}
    exported = export_graph(graph, rows, role)
    assert check_parity(role, graph, exported, rows)
    if graph.input_names == graph.block_names:
        assert check_parity(role, graph, exported, edge_rows(model.schema, rows))


def test_the_kinds_of_numbers_cover_every_density() -> None:
    _, table = model_of(list(NUMBERS), "normal", 5)
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    facts = [column.facts for column in schema if isinstance(column.facts, NumericFacts)]
    assert {fact.density for fact in facts} == {"gaussian", "student", "negative_binomial", "logistic_mixture"}
    assert {fact.transform for fact in facts} == {"none", "log1p"}
    assert {(bool(fact.atoms), fact.step > 0.0) for fact in facts} == set(itertools.product((False, True), repeat=2))


@pytest.mark.parametrize("role", GRAPHS)
def test_graphs_are_portable_and_name_no_machine(mixed_bundle: Path, role: str) -> None:
    bundle = read_bundle(mixed_bundle)
    content = bundle.members[f"{role}.onnx"]
    model = onnx.load_from_string(content)
    assert model.ir_version == 8
    assert {(entry.domain, entry.version) for entry in model.opset_import} <= {("", 18), ("ai.onnx.ml", 3)}
    for trace in (b"site-packages", b".py", b"parvae_pipeline", str(Path.home()).encode() + b"/", b"stack_trace"):
        assert trace not in content
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["parvae.role"] == role
    assert json.loads(metadata["parvae.schema"]) == bundle.manifest["schema"]


def test_a_graph_with_altered_weights_is_refused(mixed_run: Path) -> None:
    checkpoint = read_checkpoint(mixed_run / "ckpt.pt")
    graph = EncodeGraph(checkpoint.model)
    exported = export_graph(graph, checkpoint.reservoir, "encode")
    largest = max(exported.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = numpy_helper.to_array(largest) * 1.01
    largest.CopyFrom(numpy_helper.from_array(weights.astype("f4"), largest.name))
    with pytest.raises(BundleError, match="encode graph disagrees with torch on 'mean'"):
        check_parity("encode", graph, exported, checkpoint.reservoir)


class NoisyGraph(EncodeGraph):
    """Draws its own noise."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, stddev = super().forward(*tensors)
        return mean + torch.randn_like(stddev) * stddev, stddev


def test_a_graph_that_draws_random_numbers_is_refused(mixed_run: Path) -> None:
    checkpoint = read_checkpoint(mixed_run / "ckpt.pt")
    with pytest.raises(BundleError, match="noise must be an input"):
        export_graph(NoisyGraph(checkpoint.model), checkpoint.reservoir, "encode")


def test_a_graph_with_a_fixed_batch_is_refused(mixed_bundle: Path) -> None:
    model = onnx.load_from_string(read_bundle(mixed_bundle).members["decode.onnx"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(BundleError, match="fixes the batch of z to 3"):
        check_graph(model, "decode")


def test_calibration_is_the_scores_of_the_held_out_rows(mixed_run: Path, mixed_bundle: Path) -> None:
    vae = parvae.load(mixed_bundle)
    checkpoint = read_checkpoint(mixed_run / "ckpt.pt")
    with torch.no_grad():
        raw = {name: torch.from_numpy(array) for name, array in checkpoint.reservoir.items()}
        wanted = checkpoint.model.score_terms(raw).negative_elbo_nats.numpy()
    found = np.array(vae.manifest["calibration"]["scores"], dtype="f4")
    assert vae.manifest["calibration"]["from_real_rows"] is True
    np.testing.assert_allclose(found, np.sort(wanted), rtol=1e-4, atol=1e-3)


def test_a_private_run_leaves_no_real_row_in_checkpoint_or_bundle(
    tmp_path: Path, mixed_run: Path, mixed_table: pa.Table
) -> None:
    checkpoint = read_checkpoint(mixed_run / "ckpt.pt")
    private = dataclasses.replace(checkpoint, reservoir={})
    from parvae_pipeline.checkpoint import write_checkpoint

    write_checkpoint(tmp_path / "ckpt.pt", private)
    vae = parvae.load(export(tmp_path / "ckpt.pt").path)
    assert vae.manifest["calibration"]["from_real_rows"] is False
    assert len(vae.manifest["calibration"]["scores"]) >= 1000
    card = read_bundle(tmp_path / "model.vae").members["card.md"].decode()
    assert "no real row is stored" in card
    from parvae.selftest import read_golden

    incomes = read_golden(read_bundle(tmp_path / "model.vae").members["golden.npz"])["encode"]["in"]["numeric"]
    assert not np.isin(mixed_table["income"].to_numpy(), incomes).any()


def test_sampled_rows_stand_in_for_held_out_ones(mixed_run: Path) -> None:
    model = read_checkpoint(mixed_run / "ckpt.pt").model
    rows = sampled_rows(model, 50)
    with torch.no_grad():
        scores = model.score_terms({name: torch.tensor(array) for name, array in rows.items()}).negative_elbo_nats
    assert torch.isfinite(scores).all()


def test_the_same_checkpoint_makes_the_same_bundle(mixed_run: Path, mixed_bundle: Path, tmp_path: Path) -> None:
    again = export(mixed_run / "ckpt.pt", tmp_path / "again.vae")
    assert again.path.read_bytes() == mixed_bundle.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a checkpoint", b"hello"])
def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(BundleError, match=r"ckpt\.pt.*checkpoint"):
        export(tmp_path / "ckpt.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_folder_as_output_is_refused(mixed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a folder"):
        export(mixed_run / "ckpt.pt", tmp_path)


@pytest.mark.slow
def test_images_train_and_export(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = (generator.random((120, 1, 1)) * np.linspace(0, 255, 20 * 18).reshape(20, 18)).astype("u1")
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 20 * 18)
    field = pa.field("picture", column.type, metadata={"shape": "20,18"})
    weights = pa.array(images.mean(axis=(1, 2)))
    pq.write_table(
        pa.table([column, weights], schema=pa.schema([field, ("weight", pa.float64())])), tmp_path / "a.parquet"
    )
    run = train_small(tmp_path / "a.parquet", tmp_path / "run", label=None, max_steps=30, channels=16)
    vae = parvae.load(export_bundle(run))
    assert vae.sample(3)["picture"].shape == (3, 20, 18, 1)
    shutil.rmtree(run)
