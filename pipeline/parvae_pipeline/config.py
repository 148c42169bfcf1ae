"""Settings of a run: frozen, checked when made, one dataclass a concern, and the TOML that holds them.

A setting that is None is chosen from the data when training starts; the choice is printed and stored.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from parvae.errors import SettingError, listed
from parvae.storage import Place, place_of


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise SettingError(f"{name} is {value!r}; it must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is read, and how it is split."""

    paths: tuple[str, ...] = ()
    """Files, folders or globs of Parquet."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Roles by column name that overrule what the data suggest."""
    label: str | None = None
    """A column to carry through, never to model."""
    held_out_share: float = 0.1
    """Share of rows kept for validation and calibration, never trained on."""
    max_held_out_rows: int = 10_000
    reservoir_rows: int = 4_096
    """Held-out rows stored in the checkpoint for calibration and golden rows; 0 keeps every real row out of it."""
    memory_budget_mb: float | None = None
    """MiB that decoded training rows may take: rows that fit are decoded once, others are streamed every epoch; None
    takes a quarter of the machine's memory, at least 256. The order of streamed rows depends on it."""

    def __post_init__(self) -> None:
        _require(0 < self.held_out_share < 1, "data.held_out_share", self.held_out_share, "between 0 and 1")
        _require(self.max_held_out_rows >= 1, "data.max_held_out_rows", self.max_held_out_rows, "at least 1")
        _require(self.reservoir_rows >= 0, "data.reservoir_rows", self.reservoir_rows, "0 or more")
        budget_mb = self.memory_budget_mb
        fits = budget_mb is None or (math.isfinite(budget_mb) and budget_mb > 0)
        _require(fits, "data.memory_budget_mb", budget_mb, "a finite number above 0, in MiB")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network and its densities."""

    network: Literal["auto", "table", "image"] = "auto"
    kind: Literal["vae", "autoencoder"] = "vae"
    """autoencoder is deterministic: no noise in the code, no KL term, and a RealNVP prior fitted to its codes."""
    likelihood: Literal["auto", "mse", "bce"] = "auto"
    """auto takes a density for every column; mse and bce are the textbook losses (bce: 0/1 vectors and bytes)."""
    prior: Literal["auto", "normal", "realnvp", "mixture"] = "auto"
    """Of the latent code; auto trains one along and takes the one that costs held-out codes the fewest nats."""
    latent_size: int | None = None
    width: int | None = None
    """Units of the hidden layers of the table network."""
    depth: int = 2
    """Gated residual layers in encoder and decoder of the table network."""
    denoising: bool = False
    """Learn from blurred and partly hidden values: better anomaly scores and explanations of tables of numbers,
    categories and booleans, at some cost in nats. Numbers then have Gaussian densities."""
    channels: int | None = None
    """Feature maps of the image network at half resolution; twice as many at a quarter. None takes 32 where the time
    allows 20 epochs with them, else 16."""

    def __post_init__(self) -> None:
        _require(self.latent_size is None or self.latent_size >= 1, "model.latent_size", self.latent_size, "at least 1")
        _require(self.width is None or self.width >= 1, "model.width", self.width, "at least 1")
        _require(self.depth >= 0, "model.depth", self.depth, "0 or more")
        # onnxruntime works in blocks of 16 feature maps, and fails on an empty batch where they are not whole.
        whole = self.channels is None or (self.channels >= 16 and self.channels % 16 == 0)
        _require(whole, "model.channels", self.channels, "a multiple of 16")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation."""

    seed: int = 0
    max_steps: int | None = None
    """Optimiser steps; None takes what `budget_s` allows, or about 100 epochs without a budget."""
    budget_s: float | None = None
    """Wall time for the whole command, seconds."""
    batch_size: int | None = None
    learning_rate: float | None = None
    """Peak of the cosine schedule; None takes 2e-3 * sqrt(batch_size / 128)."""
    weight_decay: float = 0.01
    dropout: float | None = None
    """Share of the hidden units of a table network that a step leaves out; None leaves out some in a long run,
    and once held-out rows grow dearer."""
    warmup_share: float = 0.1
    """Share of the steps over which the weight of the KL term rises from 0 to 1 (at most 10,000 steps)."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """What is maximised: the ELBO, or the importance-weighted bound of `num_samples` codes a row."""
    contaminated: bool = False
    """Whether the rows hold anomalies: each step then leaves out the fifth of its batch that the model finds hardest,
    the run is short, and of the training rows that strangeness is measured by the strangest fifth is left out. Distance
    is then that to a fifth of them."""
    num_samples: int | None = None
    """Codes drawn for every row and step, each at the cost of a decoding; None takes 1, and 8 for iwae."""
    beta: float = 1.0
    """Final weight of the KL term; 1 is the ELBO."""
    free_bits_nats: float = 0.0
    """Rate of every latent dimension that costs nothing; 0 is the ELBO."""
    patience: int = 15
    """Evaluations without a better validation ELBO, after the KL warm-up, that end the run."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the layers in training; auto takes bfloat16 where the device has it. Everything else, and every
    figure that is reported, is float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where one process trains; auto takes a GPU where there is one. Workers of a cluster take what they are given."""
    compile: bool = False
    """Whether torch.compile fuses the layers: it needs a C++ compiler, and pays on GPUs (`benchmarks/gpu.py`)."""
    checkpoint_every_s: float = 60.0
    threads: int | None = None
    """CPU threads; None takes all cores."""

    def __post_init__(self) -> None:
        for name in ("budget_s", "learning_rate", "weight_decay", "beta", "free_bits_nats", "checkpoint_every_s"):
            value = getattr(self, name)
            _require(value is None or math.isfinite(value), f"train.{name}", value, "a finite number")
        _require(0 <= self.seed < 2**64, "train.seed", self.seed, "0 or more, below 2**64")
        _require(self.checkpoint_every_s >= 0, "train.checkpoint_every_s", self.checkpoint_every_s, "0 or more")
        slow = self.learning_rate is None or self.learning_rate <= 1
        _require(slow, "train.learning_rate", self.learning_rate, "at most 1")
        _require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, "at least 1")
        _require(self.budget_s is None or self.budget_s > 0, "train.budget_s", self.budget_s, "more than 0 seconds")
        _require(self.batch_size is None or self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        positive_rate = self.learning_rate is None or self.learning_rate > 0
        _require(positive_rate, "train.learning_rate", self.learning_rate, "more than 0")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        _require(self.dropout is None or 0 <= self.dropout < 1, "train.dropout", self.dropout, "from 0 to below 1")
        _require(0 <= self.warmup_share <= 1, "train.warmup_share", self.warmup_share, "between 0 and 1")
        _require(self.beta >= 0, "train.beta", self.beta, "0 or more")
        _require(self.num_samples is None or self.num_samples >= 1, "train.num_samples", self.num_samples, "at least 1")
        _require(self.free_bits_nats >= 0, "train.free_bits_nats", self.free_bits_nats, "0 or more")
        free_of_charge = self.free_bits_nats == 0 or self.objective == "elbo"
        _require(free_of_charge, "train.free_bits_nats", self.free_bits_nats, "0 where train.objective is 'iwae'")
        _require(self.patience >= 1, "train.patience", self.patience, "at least 1")
        _require(self.threads is None or self.threads >= 1, "train.threads", self.threads, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All settings of a run."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        fits = self.model.kind == "vae" or self.train.objective == "elbo"
        _require(fits, "train.objective", self.train.objective, "'elbo' where model.kind is 'autoencoder'")

    def to_toml(self) -> str:
        """The settings as TOML; settings that are None are left out."""
        return tomli_w.dumps(_without_none(dataclasses.asdict(self)))

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any]) -> RunSettings:
        """Settings from nested mappings.

        Raises SettingError naming an unknown table or key, or a value of the wrong type, with what is allowed.
        """
        sections = {section.name: section for section in dataclasses.fields(cls)}
        _require_known("table", document, sections)
        hints = get_type_hints(cls)
        return cls(**{name: _section(hints[name], name, table) for name, table in document.items()})


def read_toml(path: str | Place) -> dict[str, Any]:
    """The document of a TOML file."""
    try:
        return tomllib.loads(place_of(path).read_bytes().decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"the configuration {path} cannot be read: {error}") from error


def merged(document: Mapping[str, Any], assignments: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with `{"table.key": value}` put in."""
    result = {table: dict(keys) if isinstance(keys, Mapping) else keys for table, keys in document.items()}
    for dotted, value in assignments.items():
        table, dot, key = dotted.partition(".")
        if not dot:
            raise SettingError(f"--set {dotted}=...: write table.key=value, for example model.width=256")
        if not isinstance(result.setdefault(table, {}), dict):
            raise SettingError(f"{table} is {result[table]!r}; it must be a table, like [{table}] in TOML")
        result[table][key] = value
    return result


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` from the command line, the value in TOML; what is no TOML is a string.

    >>> parse_assignment("model.width=256")
    ('model.width', 256)
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingError(f"--set {text}: write table.key=value, for example model.width=256")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _section(kind: type[Any], name: str, table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise SettingError(f"{name} is {table!r}; it must be a table, like [{name}] in TOML")
    fields = {entry.name for entry in dataclasses.fields(kind)}
    _require_known(f"setting of {name}", table, fields)
    hints = get_type_hints(kind)
    return kind(**{key: _checked(f"{name}.{key}", value, hints[key]) for key, value in table.items()})


def _require_known(what: str, found: Mapping[str, Any], known: Any) -> None:
    for key in found:
        if key not in known:
            raise SettingError(f"{key!r} is no {what}; there are {listed(sorted(known), limit=20)}")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type, or a SettingError."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), name, value, f"one of {listed(get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:
        fits = isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
        _require(fits, name, value, "a list of strings")
        return tuple(value)
    kind = Mapping if get_origin(hint) is not None else hint
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    _require(fits, name, value, names.get(kind, "a table"))
    return value


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
