"""The variational autoencoder: blocks, encoder, posterior, prior, decoder, and the ELBO that ties them.

Letters in shapes: B rows, L latent dimensions, P decoder outputs, K columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parvae.errors import SettingError
from parvae.schema import Schema
from parvae_pipeline.block import Block
from parvae_pipeline.blocks import BLOCKS
from parvae_pipeline.corruption import Corruption, Corruptor
from parvae_pipeline.image_block import ImageBlock
from parvae_pipeline.networks import NETWORKS, Size
from parvae_pipeline.priors import PRIORS, gaussian_log_prob

SCORE_PAIRS = 2
"""Pairs of points that a score averages over; each costs two decodings. On binarised MNIST the score of a row is off
the ELBO by 2.5 nats with one pair, 1.8 with two and 1.4 with four (a single random code: 5.3)."""

AUTOENCODER_LOG_VARIANCE = -60.0
"""The codes of an autoencoder have no spread: 1e-13 stands for it."""

RawBatch = Mapping[str, Tensor]
"""Input tensors by block name: what the graphs take, with codes in place of strings."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every choice that fixes the shape of the weights; stored in the checkpoint."""

    network: str
    prior: str
    latent_size: int
    width: int
    depth: int
    channels: int
    likelihood: str = "auto"
    """auto, or the textbook loss that takes the place of the densities of numbers, vectors and images: mse, bce."""
    kind: str = "vae"
    """vae, or autoencoder: codes without noise, and a prior that learns where they lie but does not move them."""
    num_components: int = 1
    """Gaussians of a mixture prior."""
    denoising: bool = False
    """Whether the encoder learns from corrupted rows, and is told how much each value is corrupted."""
    surplus: tuple[int, ...] = ()
    """Latent dimensions that say nothing of a row: the same for every row, and left out of what is exported as code."""

    def __post_init__(self) -> None:
        for kind, name, table in (("network", self.network, NETWORKS), ("prior", self.prior, PRIORS)):
            if name not in table:
                raise SettingError(f"{name!r} is no {kind}; there are {', '.join(table)}")
        object.__setattr__(self, "surplus", tuple(self.surplus))  # JSON gives a list


class ElboTerms(NamedTuple):
    """The terms of the ELBO, for every row."""

    column_nats: Tensor
    """(B, K) minus the log-likelihood of every column: the distortion."""
    kl_nats: Tensor
    """(B,) from posterior to prior: the rate."""

    @property
    def negative_elbo_nats(self) -> Tensor:
        """(B,) distortion plus rate."""
        return self.column_nats.sum(dim=1) + self.kl_nats


class VariationalAutoencoder(nn.Module):
    """p(x) = integral of p(x | z) p(z), with an encoder for q(z | x) = N(mean, exp(log_variance))."""

    def __init__(self, schema: Schema, architecture: Architecture) -> None:
        super().__init__()
        self.schema, self.architecture = schema, architecture
        blocks: list[Block] = [
            BLOCKS[block.role](block, schema.num_rows, architecture.likelihood) for block in schema.inputs
        ]
        # `schema.inputs` puts images last, where the image network looks for its image.
        self.blocks = nn.ModuleList(blocks)
        encoder, decoder = NETWORKS[architecture.network]
        self.corruptor = Corruptor(blocks) if architecture.denoising else None
        size = _network_size(blocks, architecture, self.corruptor)
        self.encoder = encoder(size)
        self.decoder = decoder(size)
        self.prior = PRIORS[architecture.prior](architecture.latent_size, architecture.num_components)
        signs = torch.randint(0, 2, (SCORE_PAIRS, architecture.latent_size), generator=torch.Generator().manual_seed(0))
        self.register_buffer("score_signs", 2.0 * signs - 1.0)
        self.layer_dtype = torch.float32
        """Arithmetic of encoder and decoder; features, densities and prior are always float32."""

    score_signs: Tensor

    @property
    def latent_size(self) -> int:
        """L."""
        return self.architecture.latent_size

    @property
    def code_dimensions(self) -> list[int]:
        """The latent dimensions that make up a code: all but the surplus ones."""
        return [dimension for dimension in range(self.latent_size) if dimension not in self.architecture.surplus]

    @property
    def column_blocks(self) -> list[Block]:
        """The blocks, in the order of `Schema.inputs`."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.score_signs.device

    @property
    def num_noise(self) -> int:
        """Standard normal numbers that one drawn row takes beside those of the latent code."""
        return sum(block.num_noise for block in self.column_blocks)

    @property
    def num_features(self) -> int:
        """F: what the blocks give the encoder for a row."""
        return sum(block.num_features for block in self.column_blocks)

    def features(self, raw: RawBatch) -> Tensor:
        """(B, F) the rows as the encoder sees them, in block order."""
        return torch.cat([block.features(raw[block.name]) for block in self.column_blocks], dim=1)

    def posterior(self, raw: RawBatch, corruption: Corruption | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, L) of q(z | x), or of q(z | corrupted x) where the model is a denoising one."""
        features = self.features(raw)
        if self.corruptor is not None:
            features = self.corruptor(features, corruption)
        with self._layer_arithmetic():
            mean, log_variance = self.encoder(features)
        if self.architecture.kind == "autoencoder":
            return mean.float(), torch.full_like(mean.float(), AUTOENCODER_LOG_VARIANCE)
        return mean.float(), log_variance.float()

    def elbo_terms(self, raw: RawBatch, noise: Tensor) -> ElboTerms:
        """The ELBO with one code a row, drawn with standard normal `noise` (B, L)."""
        mean, log_variance = self.posterior(raw)
        return self.terms_at(raw, mean, log_variance, noise.unsqueeze(0))

    def score_terms(self, raw: RawBatch) -> ElboTerms:
        """The ELBO without chance: the mean over the codes mean + s * stddev and mean - s * stddev for fixed signs s.

        The points have the mean and the variances of the posterior; `evaluate.balance_score` chooses the signs so that
        what they lack (zero covariances) cancels in the mean over rows. It is what the `score` graph computes.
        """
        mean, log_variance = self.posterior(raw)
        return self.terms_at(raw, mean, log_variance, torch.cat([self.score_signs, -self.score_signs]).unsqueeze(1))

    def terms_at(self, raw: RawBatch, mean: Tensor, log_variance: Tensor, steps: Tensor) -> ElboTerms:
        """The terms of the ELBO, averaged over the codes mean + step * stddev for S `steps` (S, B or 1, L)."""
        codes = self._codes_at(mean, log_variance, steps)
        # All codes in one batch: a graph with a third of the nodes, which is what a single row waits for.
        nats = self.column_nats({name: repeated(rows, len(codes)) for name, rows in raw.items()}, torch.cat(codes))
        return ElboTerms(_mean_over_codes(nats, len(codes)), self.rate_at(mean, log_variance, steps))

    def rate_at(self, mean: Tensor, log_variance: Tensor, steps: Tensor) -> Tensor:
        """(B,) the KL term of `terms_at`: it takes no decoding."""
        if self.architecture.kind == "autoencoder":
            return -self.prior.log_prob(mean.detach())
        codes = self._codes_at(mean, log_variance, steps)
        rates = self.prior.kl(repeated(mean, len(codes)), repeated(log_variance, len(codes)), torch.cat(codes))
        return _mean_over_codes(rates, len(codes))

    def _codes_at(self, mean: Tensor, log_variance: Tensor, steps: Tensor) -> list[Tensor]:
        if self.architecture.kind == "autoencoder":
            return [mean]
        stddev = torch.exp(0.5 * log_variance)
        return [mean + step * stddev for step in steps.unbind(0)]

    def log_weights(
        self, raw: RawBatch, mean: Tensor, log_variance: Tensor, z: Tensor, kl_weight: float | Tensor = 1.0
    ) -> Tensor:
        """(B,) log p(x | z) + log p(z) - log q(z | x): log importance weights of codes `z` (B, L) from the posterior.

        `kl_weight` multiplies the two terms of the code, for warming up.
        """
        rate = self.posterior_log_prob(z, mean, log_variance) - self.prior.log_prob(z)
        return -self.column_nats(raw, z).sum(dim=1) - kl_weight * rate

    def posterior_log_prob(self, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """(B,) log q(z | x); 0 for an autoencoder, whose codes have no density."""
        if self.architecture.kind == "autoencoder":
            return torch.zeros_like(z[:, 0])
        return gaussian_log_prob(z, mean, log_variance)

    def column_nats(self, raw: RawBatch, z: Tensor) -> Tensor:
        """(B, K) minus log p(column | z), in block order."""
        parameters = self._decoder_outputs(z)
        terms = [-block.log_prob(parameters[block.name], raw[block.name]) for block in self.column_blocks]
        return torch.cat(terms, dim=1)

    def residuals(self, raw: RawBatch, z: Tensor) -> Tensor:
        """(B, values) what the prediction from `z` (B, L) is off by, in standard units, in block order."""
        parameters = self._decoder_outputs(z)
        terms = [block.residual(parameters[block.name], raw[block.name]) for block in self.column_blocks]
        return torch.cat(terms, dim=1)

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """The expected row at codes `z` (B, L), in data units, by block name."""
        parameters = self._decoder_outputs(z)
        return {block.name: block.mean(parameters[block.name]) for block in self.column_blocks}

    def sample(self, z_noise: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Rows drawn with standard normal `z_noise` (B, prior.num_noise) and `noise` (B, num_noise), by block name."""
        parameters = self._decoder_outputs(self.prior.sample(z_noise))
        parts = torch.split(noise, [block.num_noise for block in self.column_blocks], dim=1)
        return {
            block.name: block.draw(parameters[block.name], part)
            for block, part in zip(self.column_blocks, parts, strict=True)
        }

    def _layer_arithmetic(self) -> contextlib.AbstractContextManager[object]:
        if self.layer_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.layer_dtype)

    @torch.no_grad()
    def start_from(self, raw: RawBatch) -> None:
        """Set the output biases so that the decoder begins with the marginals of these rows."""
        self.decoder.start_at(torch.cat([block.initial_parameters(raw[block.name]) for block in self.column_blocks]))

    def _decoder_outputs(self, z: Tensor) -> dict[str, Tensor]:
        sizes = [block.num_parameters for block in self.column_blocks]
        with self._layer_arithmetic():
            parameters = self.decoder(z)
        parts = torch.split(parameters.float(), sizes, dim=1)
        return {block.name: part for block, part in zip(self.column_blocks, parts, strict=True)}


def repeated(rows: Tensor, num_codes: int) -> Tensor:
    """(S * B, ...) the rows once for every code."""
    return rows if num_codes == 1 else torch.cat([rows] * num_codes)


def _mean_over_codes(values: Tensor, num_codes: int) -> Tensor:
    """(B, ...) of values (S * B, ...)."""
    return values if num_codes == 1 else values.reshape(num_codes, -1, *values.shape[1:]).mean(dim=0)


def _network_size(blocks: list[Block], architecture: Architecture, corruptor: Corruptor | None) -> Size:
    image = blocks[-1] if isinstance(blocks[-1], ImageBlock) else None
    if architecture.network == "image" and image is None:
        raise SettingError("model.network is 'image', but no column is an image; take 'table' or 'auto'")
    return Size(
        latent_size=architecture.latent_size,
        num_features=sum(block.num_features for block in blocks) + (corruptor.num_values if corruptor else 0),
        num_parameters=sum(block.num_parameters for block in blocks),
        width=architecture.width,
        depth=architecture.depth,
        channels=architecture.channels,
        image=(image.channels, image.height, image.width) if image else None,
        image_maps=image.num_maps if image else 0,
    )
