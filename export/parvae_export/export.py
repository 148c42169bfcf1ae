"""Checkpoint in, verified bundle out: graphs, parity, calibration, golden rows, card."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parvae import __version__
from parvae.bundle import Bundle, bundle_bytes, read_bundle
from parvae.codes import CodeGrid
from parvae.errors import BundleError
from parvae.files import find_files
from parvae.noise import standard_normal
from parvae.rows import Arrays
from parvae.scores import Calibration
from parvae.selftest import replay, write_golden
from parvae.sessions import Sessions
from parvae.storage import Place, place_of, write_whole
from parvae_export.card import model_card
from parvae_export.codec import CodecReport, fit_codec
from parvae_export.graphs import GRAPHS, Graph, ScoreGraph
from parvae_export.int8 import Int8Report, compare_int8, in_int8
from parvae_export.onnx_graph import to_onnx
from parvae_export.parity import check_parity
from parvae_export.rows import edge_rows, graph_inputs, sampled_rows
from parvae_pipeline.checkpoint import Checkpoint, read_checkpoint
from parvae_pipeline.reader import select
from parvae_pipeline.strangeness import Strangeness, can_fit

PARITY_ROWS = 256
GOLDEN_ROWS = 8
STAND_IN_ROWS = 4_096
"""Sampled rows that take the place of held-out ones when the checkpoint holds none."""
SCORE_DEFINITION = (
    "negative ELBO in nats: minus the log-likelihood of every column, averaged over four fixed points of the "
    "posterior, plus the KL divergence from posterior to prior; higher is more anomalous"
)

STRANGENESS_DEFINITION = (
    "mean of three, the mean of the model's parts, distance and isolation, each part as sign(u) * log(1 + |u|), u the "
    "part less its median over training rows, by their spread; nats: of the row told from its code; residual: squared "
    "whitened distance to the prediction; hidden: the same to what the other columns predict; distance and isolation: "
    "to the nearest of the training rows kept in the graph, and relative to what is usual there; parts that the graph "
    "lacks have no vote"
)


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, and how well it agrees with torch."""

    path: Place
    model_id: str
    num_bytes: int
    parity_error: float
    """Largest difference from torch over all outputs, relative to the output's largest value (at least 1)."""
    num_calibration_rows: int
    from_real_rows: bool
    negative_elbo_nats: float
    """Mean score of the calibration rows, by the exported graph."""
    int8: Int8Report | None = None
    """What hidden layers in 8 bits changed, where they were asked for."""
    codec: CodecReport | None = None
    """What fitting the codec came to, where one was asked for."""


def export(
    checkpoint_path: str | Place,
    output: str | Place | None = None,
    *,
    int8: bool = False,
    codec_data: Sequence[str] = (),
    announce: Callable[[str], None] = lambda message: None,
) -> ExportResult:
    """Write `model.vae` beside the checkpoint (or to `output`), whole or not at all.

    With `int8` the hidden layers of the verified graphs are put in 8 bits; calibration and golden rows are of those.
    `codec_data` are Parquet files or folders to fit a codec to.

    Raises BundleError when the file is no checkpoint, or a graph disagrees with torch, SettingError when there is no
    layer to put in 8 bits, and DataError when no codec can be fitted to the files.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    path = place_of(output) if output is not None else place_of(checkpoint_path).with_name("model.vae")
    if path.is_dir():
        raise BundleError(f"{path} is a folder; name a file, for example {path / 'model.vae'}")
    from_real_rows = bool(checkpoint.reservoir)
    rows = checkpoint.reservoir or sampled_rows(checkpoint.model, STAND_IN_ROWS)

    strangeness = _strangeness(checkpoint, rows)
    modules: dict[str, Graph] = {role: make(checkpoint.model) for role, make in GRAPHS.items()}
    modules["score"] = ScoreGraph(checkpoint.model, strangeness)
    graphs: dict[str, bytes] = {}
    errors: list[float] = []
    for role, graph in modules.items():
        announce(f"{role}: exporting and comparing with torch")
        content, error = _verified_graph(role, graph, checkpoint, rows)
        graphs[role] = content
        errors.append(error)

    inputs = graph_inputs(checkpoint.schema, rows)
    report = None
    if int8:
        announce("int8: quantising the hidden layers")
        float_graphs = graphs
        graphs = in_int8(graphs, _inputs_of_all(modules, checkpoint, float_graphs, inputs))
        report = compare_int8(float_graphs, graphs, inputs)
    announce("calibrating on the exported graphs")
    sessions = Sessions(graphs, threads=1, low_memory=False)
    outputs, posterior = _outputs("score", sessions, inputs), _outputs("encode", sessions, inputs)
    scores = outputs.get("strangeness", outputs["score"])
    usual: Arrays = {name: _usual(outputs[name]) for name in ("contributions", "conditional") if name in outputs}
    calibration = Calibration(scores=np.sort(scores), from_real_rows=from_real_rows, typical=usual)
    manifest = _manifest(checkpoint, graphs, calibration)
    if report is not None:
        manifest["int8"] = dataclasses.asdict(report)
    manifest["codes"] = CodeGrid.fit(posterior["mean"], posterior["stddev"]).to_json()
    if strangeness is not None:
        manifest["score"]["strangeness"] = {
            "definition": STRANGENESS_DEFINITION,
            "parts": list(strangeness.part_names),
            "hidden_in": strangeness.hidden_in,
        }
    members = {f"{role}.onnx": content for role, content in graphs.items()}
    members["golden.npz"] = _golden(checkpoint, modules, sessions, rows)
    codec_report = None
    if codec_data:
        announce("codec: fitting a network for every column of numbers")
        codec, codec_report = fit_codec(checkpoint.schema, find_files(codec_data), seed=checkpoint.settings.train.seed)
        members |= codec.members()
        manifest["codec"] = {"id": codec.id.hex(), **dataclasses.asdict(codec_report)}
    members["card.md"] = model_card(checkpoint, manifest).encode()
    content = bundle_bytes(manifest, members)
    _verify(read_bundle(content))
    write_whole(path, content)
    return ExportResult(
        path=path,
        model_id=manifest["model_id"],
        num_bytes=len(content),
        parity_error=max(errors),
        num_calibration_rows=len(calibration.scores),
        from_real_rows=from_real_rows,
        negative_elbo_nats=float(np.mean(outputs["score"], dtype=np.float64)),
        int8=report,
        codec=codec_report,
    )


def _inputs_of_all(
    modules: dict[str, Graph], checkpoint: Checkpoint, graphs: dict[str, bytes], inputs: Arrays
) -> dict[str, Arrays]:
    """Inputs of every graph: rows, noise, and for the decoder the codes of the rows."""
    codes = _outputs("encode", Sessions(graphs, threads=1, low_memory=False), inputs)["mean"]
    found = {}
    for role, graph in modules.items():
        takes_columns = graph.input_names == graph.block_names
        found[role] = inputs if takes_columns else _examples(graph, checkpoint, inputs)
    return {**found, "decode": {"z": codes}}


def _strangeness(checkpoint: Checkpoint, rows: Arrays) -> Strangeness | None:
    """What tells the strangeness of rows beside their nats, for a model that can."""
    if not can_fit(checkpoint.model):
        return None
    typical = {name: torch.from_numpy(array) for name, array in (checkpoint.coreset or rows).items()}
    contaminated = checkpoint.settings.train.contaminated
    return Strangeness(checkpoint.model, typical, keep_rows=bool(checkpoint.coreset), contaminated=contaminated)


def _outputs(graph: str, sessions: Sessions, inputs: Arrays) -> Arrays:
    """What an exported graph says of the rows."""
    num_rows = len(next(iter(inputs.values())))
    outputs = [
        sessions.run(graph, {name: array[first : first + 1024] for name, array in inputs.items()})
        for first in range(0, num_rows, 1024)
    ]
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def _usual(nats: NDArray[Any]) -> NDArray[Any]:
    """(columns,) mean of the nats (rows, columns), what lies beyond 99 of 100 rows counted as if it lay there."""
    cut: NDArray[Any] = np.minimum(nats, np.quantile(nats, 0.99, axis=0)).mean(axis=0)
    return cut


def _verified_graph(role: str, graph: Graph, checkpoint: Checkpoint, rows: Arrays) -> tuple[bytes, float]:
    """The bytes of one graph, and its largest difference from torch."""
    examples = _examples(graph, checkpoint, rows)
    exported = to_onnx(
        graph,
        [torch.from_numpy(examples[name][:3]) for name in graph.input_names],
        input_names=graph.input_names,
        output_names=graph.output_names,
        schema=checkpoint.schema,
        role=role,
    )
    checks = check_parity(role, graph, exported, examples)
    if graph.input_names == graph.block_names:
        checks += check_parity(role, graph, exported, edge_rows(checkpoint.schema, rows))
    return exported.SerializeToString(), max(check.error for check in checks)


def _examples(graph: Graph, checkpoint: Checkpoint, rows: Arrays) -> Arrays:
    """Inputs to compare a graph on, as torch takes them."""
    num_rows = len(next(iter(rows.values())))
    if graph.input_names == graph.block_names:
        return select(rows, np.arange(PARITY_ROWS) % num_rows)
    sizes = {
        "z": len(checkpoint.model.code_dimensions),
        "z_noise": checkpoint.model.prior.num_noise,
        "noise": checkpoint.model.num_noise,
    }
    return {
        name: standard_normal(1, (PARITY_ROWS, sizes[name]), stream=index)
        for index, name in enumerate(graph.input_names)
    }


def _golden(checkpoint: Checkpoint, modules: dict[str, Graph], sessions: Sessions, rows: Arrays) -> bytes:
    """Rows in and numbers out, of every graph: the first held-out rows, and rows that no data set should hold."""
    schema = checkpoint.schema
    num_rows = len(next(iter(rows.values())))
    plain = select(rows, np.arange(min(GOLDEN_ROWS, num_rows)))
    edges = edge_rows(schema, rows)
    raw = graph_inputs(schema, {name: np.concatenate([plain[name], edges[name]]) for name in plain})
    golden = {}
    for role, graph in modules.items():
        takes_columns = graph.input_names == graph.block_names
        inputs = raw if takes_columns else select(_examples(graph, checkpoint, rows), np.arange(GOLDEN_ROWS))
        golden[role] = {"in": inputs, "out": sessions.run(role, inputs)}
    return write_golden(golden)


def _manifest(checkpoint: Checkpoint, graphs: dict[str, bytes], calibration: Calibration) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "model_id": hashlib.sha256(b"".join(graphs.values())).hexdigest(),
        "schema": checkpoint.schema.to_json(),
        "latent_size": len(model.code_dimensions),
        "score": {"unit": "nats", "definition": SCORE_DEFINITION},
        "calibration": calibration.to_json(),
        "noise": {
            "generator": "Philox4x32-10 and Box-Muller in float64",
            "latent": model.prior.num_noise,
            "observation": {block.name: block.num_noise for block in model.column_blocks},
        },
        "metrics": checkpoint.metrics,
        "versions": {
            "parvae": __version__,
            **{
                package: metadata.version(package)
                for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
            },
        },
    }


def _verify(bundle: Bundle) -> None:
    failed = [check for check in replay(bundle) if not check.passed]
    if failed:
        raise BundleError(f"the bundle does not replay its own golden rows ({failed[0]}); no bundle was written")
