"""The four graphs of a bundle, as torch modules over the very model that was trained.

Letters in shapes: B rows, L latent dimensions, C of them that make up a code.

Inputs come in the order of `Schema.inputs`; categories are codes here, and strings once `onnx_graph` has put the
lookup tables around the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from parvae.model import HIDDEN_CODES
from parvae_pipeline.model import VariationalAutoencoder
from parvae_pipeline.strangeness import Strangeness


class Graph(nn.Module):
    """A module with named inputs and outputs."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, model: VariationalAutoencoder) -> None:
        super().__init__()
        self.model = model
        self.block_names = tuple(block.name for block in model.schema.inputs)
        self.register_buffer("dimensions", torch.tensor(model.code_dimensions))

    dimensions: Tensor

    def raw(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Input tensors by block name."""
        return dict(zip(self.block_names, tensors, strict=True))

    def code(self, z: Tensor) -> Tensor:
        """(..., C) of latent vectors (..., L): without their surplus dimensions."""
        return z[..., self.dimensions] if self.model.architecture.surplus else z

    def columns(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Output tensors in block order."""
        return tuple(values[name] for name in self.block_names)


class EncodeGraph(Graph):
    """Raw columns -> mean and standard deviation (B, C) of the posterior, in the C dimensions of a code."""

    def __init__(self, model: VariationalAutoencoder) -> None:
        super().__init__(model)
        self.input_names, self.output_names = self.block_names, ("mean", "stddev")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        mean, log_variance = self.model.posterior(self.raw(tensors))
        return self.code(mean), self.code(torch.exp(0.5 * log_variance))


class DecodeGraph(Graph):
    """z (B, C) -> the expected columns in data units."""

    def __init__(self, model: VariationalAutoencoder) -> None:
        super().__init__(model)
        self.input_names, self.output_names = ("z",), self.block_names
        places = torch.full((model.latent_size,), len(self.dimensions))
        places[self.dimensions] = torch.arange(len(self.dimensions))
        self.register_buffer("places", places)

    places: Tensor
    """(L,) where in a code each dimension is; surplus ones, which the decoder does not look at, in a 0 after it."""

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        if self.model.architecture.surplus:
            z = functional.pad(z, (0, 1))[:, self.places]
        return self.columns(self.model.decode(z))


class ScoreGraph(Graph):
    """Raw columns -> score (B,) and contributions (B, columns + 1), in nats.

    With a strangeness also that (B,), its parts (B, parts), the conditional nats (B, columns), and the codes
    (B, groups, C) of the rows with one group of columns after the other hidden.
    """

    def __init__(self, model: VariationalAutoencoder, strangeness: Strangeness | None = None) -> None:
        super().__init__(model)
        self.strangeness = strangeness
        self.input_names, self.output_names = self.block_names, ("score", "contributions")
        if strangeness is not None:
            self.output_names += ("strangeness", "parts", "conditional", HIDDEN_CODES)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        raw = self.raw(tensors)
        terms = self.model.score_terms(raw)
        contributions = torch.cat([terms.column_nats, terms.kl_nats.unsqueeze(1)], dim=1)
        outputs = (contributions.sum(dim=1), contributions)
        if self.strangeness is None:
            return outputs
        *parts, codes = self.strangeness(raw)
        return (*outputs, *parts, self.code(codes))


class SampleGraph(Graph):
    """z_noise (B, prior.num_noise) and noise (B, num_noise), both standard normal -> drawn columns in data units."""

    def __init__(self, model: VariationalAutoencoder) -> None:
        super().__init__(model)
        self.input_names, self.output_names = ("z_noise", "noise"), self.block_names

    def forward(self, z_noise: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return self.columns(self.model.sample(z_noise, noise))


GRAPHS: Mapping[str, Callable[[VariationalAutoencoder], Graph]] = {
    "encode": EncodeGraph,
    "decode": DecodeGraph,
    "score": ScoreGraph,
    "sample": SampleGraph,
}
