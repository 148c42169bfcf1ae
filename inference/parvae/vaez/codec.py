"""The codec of a bundle: what every column of numbers is likely to be, given the columns before it in the same row.

A small network per column says so, `decode_exact.onnx`. Its weights and activations are whole numbers held in float32,
and no partial sum reaches 2**24, so that every machine, thread count and runtime finds the same parameters; what numpy
does with them are single operations of IEEE 754, and sums of whole numbers. Source for the exactness: Ballé, Johnston
and Minnen, "Integer networks for data compression with latent-variable models" (ICLR 2019).

The codes of the autoencoder take no part. Of what a file takes without a model, half of pendigits and of satellite take
0.79 and 0.88 by networks that learned from the other half; codes rounded to the best grid, and columns given these by a
decoder that were free, 0.88 and 0.94 (`benchmarks/compression.py --model 1m`).

Letters in shapes: n rows, C columns, I columns that one looks at, F = 3 I features, P parameters, K components of a
mixture, A atoms, S bins.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import BundleError, CorruptFileError
from parvae.sessions import Sessions

GRAPH, FACTS = "decode_exact.onnx", "codec.npz"
"""Members of a bundle."""
VERSION = 1
NUM_COMPONENTS, NUM_ATOMS = 3, 2
NUM_PARAMETERS = 3 * NUM_COMPONENTS + NUM_ATOMS
"""P: logits of components and atoms, then locations, then scales."""
FEATURES_OF_A_COLUMN = 3
FEATURE_UNIT = 32
"""A standard deviation in features."""
MAX_DEVIATION = 8
"""Standard deviations at which features are cut."""
MAX_FEATURE = MAX_DEVIATION * FEATURE_UNIT
EDGE_UNIT = 1024
"""A standard deviation in locations and edges."""
LOGIT_UNIT = 8
"""A nat in logits."""
OCTAVE = 8
"""Twice the scale in steps of the parameter."""
MAX_EDGE = 1 << 21
LOGISTIC_UNIT = 400
"""A scale in the argument of the logistic table, which ends 4,096 steps from its middle."""
LOGISTIC_REACH = 4096
MAX_MASS = 1 << 15
"""Entry of the logistic table for all mass."""
MAX_WEIGHT = 512
"""All weights of a mixture."""
WHOLE = MAX_WEIGHT * MAX_MASS
"""All mass: 2**24."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What is known of the columns beside the networks."""

    inputs: NDArray[np.int64]
    """(C, I) which columns before it each one looks at; -1 for none."""
    means: NDArray[np.float64]
    """(C,) of the values, after their logarithm where `logs` says so."""
    stddevs: NDArray[np.float64]
    logs: NDArray[np.bool_]
    atoms: NDArray[np.float64]
    """(C, A) values that take a share of the rows by themselves; NaN for none."""

    def standardised(self, column: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of a column in its standard deviations from its mean."""
        shown = piecewise_log2(values) if self.logs[column] else values
        standardised: NDArray[np.float64] = (shown - self.means[column]) / self.stddevs[column]
        return standardised


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """The codec, read from a bundle or from a file that carries it."""

    names: Sequence[str]
    """(C,) columns in the order in which they are decoded."""
    columns: Columns
    logistic: NDArray[np.float32]
    """(2 * 4096 + 1,) the logistic function in whole numbers."""
    inverse_scales: NDArray[np.float32]
    """By parameter, for edges in their unit."""
    exponentials: NDArray[np.float32]
    """Of 0, -1 / 8, -2 / 8, ... in whole numbers."""
    probe: NDArray[np.int16]
    """(64, F) features."""
    probe_digest: str
    """SHA-256 of what the graph makes of the probe, column after column."""
    weights_digest: str
    """SHA-256 of the whole numbers in the graph."""
    graph: bytes = field(repr=False)

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of all that decoding depends on; the bytes of the graph and of the members may differ."""
        digest = hashlib.sha256(json.dumps([VERSION, *self.names, self.weights_digest, self.probe_digest]).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def features(self, column: int, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Floats:
        """(n, 3) of what a column holds: the value, its size, and whether it is missing."""
        with np.errstate(invalid="ignore", over="ignore"):
            standardised = self.columns.standardised(column, values.astype(np.float64)) * FEATURE_UNIT
        missing = np.isnan(standardised)
        if valid is not None:
            missing |= ~valid
        whole = np.where(missing, 0.0, np.clip(np.rint(standardised), -MAX_FEATURE, MAX_FEATURE))
        return np.stack([whole, np.abs(whole), np.where(missing, FEATURE_UNIT, 0)], axis=1).astype(np.float32)

    def parameters(self, column: int, features: Mapping[int, Floats], num_rows: int) -> Floats:
        """(n, P) whole numbers, from the features of the columns before; those that have none count as missing."""
        inputs = self.columns.inputs[column].tolist()
        seen = np.zeros((num_rows, len(inputs), FEATURES_OF_A_COLUMN), np.float32)
        for place, other in enumerate(inputs):
            if other >= 0:
                seen[:, place] = features.get(other, _MISSING)
        return self._run(column, seen.reshape(num_rows, -1))

    def edges(self, column: int, below: NDArray[Any], above: NDArray[Any]) -> Floats:
        """(S + 1,) where bins meet: half way from the last value (S - 1,) of one to the first value of the next.

        Raises CorruptFileError when they do not rise.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            middles = _middles(below, above)
            units = np.rint(self.columns.standardised(column, middles) * EDGE_UNIT)
        if not np.all(np.diff(middles) >= 0) or not np.all(np.isfinite(middles)):
            raise CorruptFileError("the bins of a column do not rise; the file is damaged")
        found = np.clip(units, -MAX_EDGE, MAX_EDGE).astype(np.float32)
        return np.concatenate([[np.float32(-np.inf)], found, [np.float32(np.inf)]])

    def atom_bins(self, column: int, below: NDArray[Any], above: NDArray[Any]) -> list[int]:
        """(A,) the bin that holds each atom, -1 for none; arguments as for `edges`."""
        middles = _middles(below, above)
        return [-1 if np.isnan(atom) else int(np.sum(middles <= atom)) for atom in self.columns.atoms[column]]

    def require_exact(self) -> None:
        """Raise BundleError unless this machine computes the graph as the one that exported it did."""
        if self.probed() != self.probe_digest:
            raise BundleError(
                "this machine does not compute the exact graph as the one that exported it: files of this model cannot "
                "be read or written here; use another release of onnxruntime, or the CPU provider without fast maths"
            )

    def probed(self) -> str:
        """SHA-256 of the parameters that this machine finds for the probe."""
        digest = hashlib.sha256()
        for column in range(len(self.names)):
            digest.update(self._run(column, self.probe.astype(np.float32)).astype("<i4").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """As in a file that carries its model: u32 length of the facts, the facts, the graph."""
        facts = self._facts_to_bytes()
        return struct.pack("<I", len(facts)) + facts + self.graph

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The codec that `to_bytes` wrote."""
        (size,) = struct.unpack("<I", content[:4])
        return cls.from_members(content[4 : 4 + size], content[4 + size :])

    def members(self) -> dict[str, bytes]:
        """As in a bundle."""
        return {GRAPH: self.graph, FACTS: self._facts_to_bytes()}

    @classmethod
    def from_members(cls, facts: bytes, graph: bytes, *, proved: bool = True) -> Self:
        """The codec of a bundle's members `codec.npz` and `decode_exact.onnx`, proved on this machine.

        Raises BundleError when they are damaged or newer, or this machine computes otherwise.
        """
        from zipfile import BadZipFile  # who has no codec does not wait for it

        try:
            with np.load(io.BytesIO(facts), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            said = json.loads(arrays.pop("facts").tobytes())
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise BundleError(f"the codec cannot be read ({error}); export the bundle anew") from error
        if said["version"] > VERSION:
            raise BundleError(f"the codec has version {said['version']}, newer than {VERSION}; upgrade parvae")
        del said["version"]
        columns = Columns(**{field.name: arrays.pop(field.name) for field in fields(Columns)})
        codec = cls(**said, columns=columns, **arrays, graph=graph)
        if proved:
            codec.require_exact()
        return codec

    def _facts_to_bytes(self) -> bytes:
        said = {
            "version": VERSION,
            "names": list(self.names),
            "probe_digest": self.probe_digest,
            "weights_digest": self.weights_digest,
        }
        sink = io.BytesIO()
        facts = np.frombuffer(json.dumps(said, ensure_ascii=False).encode(), np.uint8)
        np.savez(sink, facts=facts, **self._arrays())  # type: ignore[arg-type]  # numpy's hints have one keyword
        return sink.getvalue()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            **vars(self.columns),
            "logistic": self.logistic,
            "inverse_scales": self.inverse_scales,
            "exponentials": self.exponentials,
            "probe": self.probe,
        }

    @cached_property
    def _sessions(self) -> Sessions:
        # Exact with any number of threads; one is the fastest for layers this small.
        return Sessions({GRAPH: self.graph}, threads=1, low_memory=False)

    def _run(self, column: int, features: Floats) -> Floats:
        inputs: dict[str, NDArray[Any]] = {"features": features, "column": np.array(column, np.int64)}
        parameters: Floats = np.rint(self._sessions.run(GRAPH, inputs)["parameters"])
        return parameters


_MISSING = np.array([0, 0, FEATURE_UNIT], np.float32)


def _middles(below: NDArray[Any], above: NDArray[Any]) -> NDArray[np.float64]:
    return 0.5 * below.astype(np.float64) + 0.5 * above.astype(np.float64)


def piecewise_log2(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """sign(x) times about log2(1 + |x|): the bits of a float are a logarithm, the same one on every machine."""
    bits = (1.0 + np.abs(values)).view(np.int64) - np.float64(1.0).view(np.int64)
    return np.where(np.isnan(values), np.nan, np.copysign(bits * 2.0**-52, values))


class Mixture:
    """How likely each bin is, for every row: a mixture of logistic densities, and atoms."""

    def __init__(self, codec: Codec, column: int, parameters: Floats, edges: Floats, atom_bins: Sequence[int]) -> None:
        """`atom_bins` (A,) are the bins that hold the atoms of the column, -1 for none."""
        self._codec, self._edges, self._atom_bins = codec, edges, atom_bins
        num_logits = NUM_COMPONENTS + NUM_ATOMS
        values = np.ascontiguousarray(parameters.T)
        logits, locations, scales = np.split(values, [num_logits, num_logits + NUM_COMPONENTS])
        for place, atom_bin in enumerate(atom_bins):
            if atom_bin < 0:
                logits[NUM_COMPONENTS + place] = -np.inf
        self._weights = self._whole_weights(logits)
        self._slopes = codec.inverse_scales.take(scales.astype(np.int32), mode="clip")
        self._offsets = LOGISTIC_REACH - locations * self._slopes
        self.num_bins = len(edges) - 1

    def mass_below(self, bins: NDArray[np.integer[Any]]) -> Floats:
        """(..., n) mass of the bins before `bins` (..., n), of 2**24 in all; whole numbers."""
        edges = self._edges.take(bins)
        total = np.zeros(bins.shape, np.float32)
        for weights, slopes, offsets in zip(self._weights, self._slopes, self._offsets, strict=False):
            place = edges * slopes
            place += offsets
            np.clip(place, 0, 2 * LOGISTIC_REACH, out=place)
            mass = self._codec.logistic.take(place.astype(np.int32), mode="clip")
            mass *= weights
            total += mass
        for weights, atom_bin in zip(self._weights[NUM_COMPONENTS:], self._atom_bins, strict=True):
            if atom_bin >= 0:
                total += (bins > atom_bin) * (MAX_MASS * weights)
        return total

    def _whole_weights(self, logits: Floats) -> Floats:
        """(K + A, n) whole numbers that sum to 512."""
        below = logits.max(axis=0) - logits
        last = len(self._codec.exponentials) - 1
        shares = self._codec.exponentials.take(np.minimum(below, last).astype(np.int32))
        shares[np.isinf(logits)] = 0.0
        sums: Floats = shares.cumsum(axis=0)  # whole numbers below 2**24: exact
        # The end is met exactly, also by what comes before an atom that is not there.
        ends = np.where(sums == sums[-1], np.float32(MAX_WEIGHT), np.floor(sums * (MAX_WEIGHT / sums[-1])))
        ends[1:] -= ends[:-1].copy()
        return ends
