"""The loaded model: what an application embeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parvae.bundle import GRAPHS, Bundle, BundleSource, read_bundle
from parvae.codes import CodeGrid
from parvae.conformal import smallest_alpha
from parvae.errors import BundleError, DataError, SettingError
from parvae.noise import standard_normal
from parvae.rows import Arrays, in_the_form_of, read_inputs, rows_from_outputs
from parvae.schema import Role, Schema
from parvae.scores import Calibration, Scores
from parvae.sessions import Sessions
from parvae.vaez.codec import FACTS, GRAPH, Codec
from parvae.vaez.rows import compress, decompress

LATENT_PART = "(latent)"
HIDDEN_CODES = "hidden_codes"
"""Output of a score graph: codes of the rows with one group of columns after the other hidden."""
_CHUNK_BYTES = 8 << 20
_CHUNK_ROWS = 1024  # throughput is flat from 64 to 4,096 rows; memory is not
_CODES_AT_ONCE = {"score": 4}
"""Codes of one row that a graph decodes in one batch."""


def load(source: BundleSource, *, threads: int = 1, low_memory: bool = False) -> VAE:
    """Open and verify a bundle.

    `source` is a path, a URL (needs pyarrow), bytes or a binary file object. `threads` is what every graph may use;
    `low_memory` trades some speed for memory that is given back after each call.

    Raises BundleError when the bundle is damaged, altered or too new.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise SettingError(f"threads is {threads!r}; it must be a whole number, at least 1")
    return VAE(read_bundle(source), threads=threads, low_memory=low_memory)


class VAE:
    """A variational autoencoder on onnxruntime. Immutable, thread-safe, picklable, safe to use after a fork.

    Letters in shapes: n rows, latent = `latent_size`.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, low_memory: bool = False) -> None:
        self._bundle, self._threads = bundle, threads
        self._schema = Schema.from_json(bundle.manifest["schema"])
        self._calibration = Calibration.from_json(bundle.manifest["calibration"])
        self._codec: Codec | None = None
        graphs = {graph: bundle.members[f"{graph}.onnx"] for graph in GRAPHS}
        self._sessions = Sessions(graphs, threads=threads, low_memory=low_memory)

    @property
    def schema(self) -> Schema:
        """The columns the model knows."""
        return self._schema

    @property
    def manifest(self) -> Mapping[str, Any]:
        """All that the bundle says of itself."""
        return self._bundle.manifest

    @property
    def model_id(self) -> str:
        """Hash of the graphs: equal ids give equal numbers."""
        return str(self._bundle.manifest["model_id"])

    @property
    def latent_size(self) -> int:
        """Numbers in one code."""
        return int(self._bundle.manifest["latent_size"])

    @property
    def code_grid(self) -> CodeGrid:
        """The grid on which codes take one byte a number.

        Raises BundleError when the bundle was exported without one.
        """
        return CodeGrid.of(self._bundle.manifest)

    @property
    def codec(self) -> Codec | None:
        """What files are compressed with; None where the bundle was exported without.

        Raises BundleError when this machine does not compute it exactly.
        """
        if self._codec is None and FACTS in self._bundle.members:
            self._codec = Codec.from_members(self._bundle.members[FACTS], self._bundle.members[GRAPH])
        return self._codec

    def require_codec(self) -> Codec:
        """The codec.

        Raises BundleError when the bundle was exported without one.
        """
        if self.codec is None:
            raise BundleError(
                f"{self._bundle.name} has no codec; export it with `vae export CHECKPOINT --codec DATA`, or compress "
                "without a model"
            )
        return self.codec

    @property
    def smallest_alpha(self) -> float:
        """The smallest alpha that the calibration rows support."""
        return smallest_alpha(len(self._calibration.scores))

    @property
    def calibration_id(self) -> str:
        """Hash of the calibration table: with an equal `model_id` it gives equal p-values."""
        return self._calibration.id

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the contributions to a score: the modelled columns, then the latent code."""
        return (*(column.name for column in self._schema.modelled), LATENT_PART)

    @property
    def _strangeness_parts(self) -> list[str]:
        return list(self.manifest["score"].get("strangeness", {}).get("parts", []))

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Codes (n, latent): the mean of the posterior of each row.

        Raises DataError naming the column when one is missing or of another type; so do all verbs that take rows.
        """
        return self._run_rows("encode", rows)["mean"]

    def decode(self, codes: ArrayLike) -> Arrays:
        """Columns by name, as the model expects them at `codes` (n, latent)."""
        try:
            z = np.asarray(codes, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"codes are no numbers ({error}); decode needs (rows, {self.latent_size}) floats"
            ) from error
        if z.ndim != 2 or z.shape[1] != self.latent_size:
            raise DataError(f"codes have shape {z.shape}; decode needs (rows, {self.latent_size})")
        return rows_from_outputs(self._schema, self._run("decode", {"z": z}, len(z)))

    def reconstruct(self, rows: Any) -> Any:
        """The rows with every modelled column replaced by what the model expects; other columns pass through."""
        return in_the_form_of(rows, self._schema, self.decode(self.encode(rows)))

    def expect(self, rows: Any) -> Any:
        """The rows with every modelled column replaced by what the model expects of it; other columns pass through.

        A model trained for that (`model.denoising`) expects a column by the others alone; any other reconstructs.
        """
        groups = self.manifest["score"].get("strangeness", {}).get("hidden_in")
        if groups is None:
            return self.reconstruct(rows)
        inputs, num_rows = read_inputs(self._schema, rows)
        size = self._chunk_rows("score")
        chunks = []
        for first in range(0, max(1, num_rows), size):
            chunk = {name: array[first : first + size] for name, array in inputs.items()}
            codes = self._sessions.run("score", chunk)[HIDDEN_CODES]  # (n, groups, latent)
            decoded = [self.decode(codes[:, group]) for group in range(codes.shape[1])]
            chunks.append({name: decoded[group][name] for name, group in groups.items()})
        return in_the_form_of(rows, self._schema, _joined(chunks))

    def score(self, rows: Any) -> Scores:
        """What each row costs under the model, in nats, with the contribution of each column."""
        inputs, num_rows = read_inputs(self._schema, rows)
        return self._score_inputs(inputs, num_rows, rows)

    def _score_inputs(self, inputs: Arrays, num_rows: int, rows: Any) -> Scores:
        outputs = self._run("score", inputs, num_rows, without=(HIDDEN_CODES,))
        return Scores(
            nats=outputs["score"],
            contributions=outputs["contributions"],
            parts=self.parts,
            calibration=self._calibration,
            expect=partial(self.expect, rows),
            strangeness=outputs.get("strangeness"),
            strangeness_parts=dict(zip(self._strangeness_parts, outputs["parts"].T, strict=True))
            if "parts" in outputs
            else {},
            conditional=outputs.get("conditional"),
        )

    def sample(self, num_rows: int, *, seed: int = 0, pixel_noise: bool = False) -> Arrays:
        """Rows drawn from the model, as arrays by column name; the same seed gives the same rows on every machine.

        Images come with every pixel at its median unless `pixel_noise` asks for a draw of each; all other columns are
        drawn. Keys and labels are no part of the model and so not of the sample.

        Raises SettingError when `num_rows` is negative or the seed no whole number from 0 to 2**64 - 1.
        """
        if not isinstance(num_rows, (int, np.integer)) or num_rows < 0:
            raise SettingError(f"num_rows is {num_rows!r}; it must be a whole number, 0 or more")
        outputs = [
            self._sessions.run("sample", self.sample_noise(min(size, num_rows - first), seed, first, pixel_noise))
            for size in [self._chunk_rows("sample")]
            for first in range(0, max(num_rows, 1), size)
        ]
        return rows_from_outputs(self._schema, _joined(outputs))

    def sample_noise(self, num_rows: int, seed: int, first_row: int = 0, pixel_noise: bool = False) -> Arrays:
        """The noise that `sample` feeds its graph: z_noise (n, of the prior) and noise (n, of all columns)."""
        sizes = self.manifest["noise"]["observation"]
        latent = self.manifest["noise"].get("latent", self.latent_size)
        z_noise = standard_normal(seed, (num_rows, latent), first_row=first_row)
        images = {block.name for block in self._schema.inputs if block.role is Role.IMAGE}
        blocks = [
            np.zeros((num_rows, size), np.float32)
            if name in images and not pixel_noise
            else standard_normal(seed, (num_rows, size), stream=1 + index, first_row=first_row)
            for index, (name, size) in enumerate(sizes.items())
        ]
        return {"z_noise": z_noise, "noise": np.concatenate(blocks, axis=1)}

    def compress(self, rows: Any, *, bounds: Mapping[str, Any] | None = None, carry_model: bool = False) -> bytes:
        """The bytes of a `.vaez` file that holds all columns of `rows`, smaller for what this model knows of them.

        As `parvae.compress` with this model. Raises BundleError when the bundle has no codec.
        """
        return compress(rows, bounds=bounds, model=self, carry_model=carry_model)

    def decompress(self, blob: bytes, *, columns: Sequence[str] | None = None) -> Any:
        """The rows of a `.vaez` file that this model compressed, in the form they came in; as `parvae.decompress`."""
        return decompress(blob, columns=columns, model=self)

    def __repr__(self) -> str:
        names = ", ".join(column.name for column in self._schema.modelled[:6])
        more = ", ..." if len(self._schema.modelled) > 6 else ""
        return f"<parvae.VAE {self.model_id[:12]} latent_size={self.latent_size} columns=({names}{more})>"

    def _run_rows(self, graph: str, rows: Any) -> Arrays:
        inputs, num_rows = read_inputs(self._schema, rows, num_threads=self._threads)
        return self._run(graph, inputs, num_rows)

    def _run(self, graph: str, inputs: Arrays, num_rows: int, *, without: Sequence[str] = ()) -> Arrays:
        size = self._chunk_rows(graph)
        if num_rows <= size:
            return self._sessions.run(graph, inputs, without=without)
        outputs = [
            self._sessions.run(
                graph, {name: array[first : first + size] for name, array in inputs.items()}, without=without
            )
            for first in range(0, num_rows, size)
        ]
        return _joined(outputs)

    def _chunk_rows(self, graph: str) -> int:
        # Network layers are about as wide as a row; four of them at a time bound the memory of a call.
        width = sum(int(np.prod(block.row_shape)) for block in self._schema.inputs)
        return max(16, min(_CHUNK_ROWS, _CHUNK_BYTES // (4 * 4 * width)) // _CODES_AT_ONCE.get(graph, 1))


def _joined(outputs: list[Arrays]) -> Arrays:
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
