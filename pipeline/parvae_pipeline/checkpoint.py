"""The checkpoint ckpt.pt: all that export needs, readable without running any code that it brings."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from parvae import __version__
from parvae.errors import BundleError
from parvae.rows import Arrays
from parvae.schema import Schema
from parvae.storage import Place, place_of, write_whole
from parvae_pipeline.config import RunSettings
from parvae_pipeline.model import Architecture, VariationalAutoencoder
from parvae_pipeline.run_folder import torch_bytes, torch_load

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and what is needed to export it."""

    model: VariationalAutoencoder
    settings: RunSettings
    reservoir: Arrays
    """Held-out rows as the network takes them (categories as codes); empty when no real row may leave the run."""
    metrics: dict[str, Any]
    coreset: Arrays = field(default_factory=dict)
    """Training rows that a denoising model measures distances to; empty for others, and when no real row may leave."""

    @property
    def schema(self) -> Schema:
        """The columns of the data set."""
        return self.model.schema


def write_checkpoint(path: Place, checkpoint: Checkpoint) -> None:
    """Write ckpt.pt whole or not at all: tensors, and JSON for the rest."""
    facts = {
        "schema": checkpoint.schema.to_json(),
        "architecture": dataclasses.asdict(checkpoint.model.architecture),
        "settings": dataclasses.asdict(checkpoint.settings),
        "metrics": checkpoint.metrics,
        "versions": {"parvae": __version__, "torch": torch.__version__},
    }
    document = {
        "parvae_checkpoint": FORMAT,
        "facts": json.dumps(facts),
        "weights": dict(checkpoint.model.state_dict()),
        "reservoir": {name: torch.from_numpy(array) for name, array in checkpoint.reservoir.items()},
        "coreset": {name: torch.from_numpy(array) for name, array in checkpoint.coreset.items()},
    }
    write_whole(path, torch_bytes(document))


def read_checkpoint(path: str | Place) -> Checkpoint:
    """The checkpoint that `write_checkpoint` wrote.

    Raises BundleError when the file is missing, damaged, something else, or newer than this version.
    """
    document = torch_load(place_of(path))
    found = document.get("parvae_checkpoint")
    if not isinstance(found, int):
        raise BundleError(f"{path} is a torch file, but no checkpoint of vae train; give the ckpt.pt of a run")
    if found > FORMAT:
        raise BundleError(f"{path} has checkpoint format {found}; this parvae reads {FORMAT}: upgrade it")
    try:
        facts = json.loads(document["facts"])
        settings = {table: _without_none(values) for table, values in facts["settings"].items()}
        model = VariationalAutoencoder(Schema.from_json(facts["schema"]), Architecture(**facts["architecture"]))
        model.load_state_dict(document["weights"])
        return Checkpoint(
            model=model.eval(),
            settings=RunSettings.from_mapping(settings),
            reservoir={name: tensor.numpy() for name, tensor in document["reservoir"].items()},
            metrics=facts["metrics"],
            coreset={name: tensor.numpy() for name, tensor in document.get("coreset", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} is no whole checkpoint ({error}); train anew or give another ckpt.pt") from error


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
