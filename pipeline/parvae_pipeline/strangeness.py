"""How strange a row is: what its columns cost given the others, how far the model misses it, how far known rows are.

Four parts, each put on one scale by typical rows and compressed, then averaged: one rule for all data.

conditional   nats of every column with the column hidden from the encoder
residual      squared distance between the row and its prediction, whitened by the residuals of typical rows
distance      log of the mean distance to the 5 nearest of at most 4,096 training rows
isolation     the same with each distance divided by what is usual around that training row (as the local outlier
              factor does: Breunig et al. 2000)

Letters in shapes: B rows, K columns, F features, R residuals, G groups, L latent dimensions, N rows of the coreset.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from parvae.rows import Arrays
from parvae_pipeline.corruption import Corruption, hidden_groups
from parvae_pipeline.model import RawBatch, VariationalAutoencoder
from parvae_pipeline.reader import Reader, select

MODEL_PARTS = ("conditional", "residual")
CORESET_PARTS = ("distance", "isolation")
MAX_CORESET_ROWS = 4_096
MAX_FEATURES = 512
"""Rows of more features are scored by the ELBO alone: distances there are dear, and mean little."""
NUM_NEIGHBOURS = 5
SMALLEST_DISTANCE = 0.05
"""Added in squares, per row: a copy of a training row is at this distance, not at 0 with its infinite logarithm."""
RIDGE = 0.01
"""Added to the variances of residuals, in squared standard deviations of a column."""
STRANGEST_SHARE = 0.2
"""Of contaminated typical rows, those that are left out."""
FIT_ROWS = 512
"""Rows at a time while fitting."""


class Strangeness(nn.Module):
    """The parts of the strangeness of rows, and their mean; fitted on typical rows."""

    whitening: Tensor
    coreset: Tensor
    log_usual: Tensor
    centre: Tensor
    spread: Tensor
    groups: Tensor

    def __init__(
        self, model: VariationalAutoencoder, typical: RawBatch, *, keep_rows: bool, contaminated: bool = False
    ) -> None:
        """`typical` rows set the scales; with `keep_rows` they also are the coreset, stored in the module.

        Of `contaminated` ones those that the model finds strangest are left out.
        """
        super().__init__()
        if contaminated:
            typical = _least_strange(Strangeness(model, typical, keep_rows=False), typical)
        self.model, self.has_coreset = model, keep_rows
        # Anomalies that lie close together are not isolated: known rows are then only a matter of distance.
        coreset_parts = CORESET_PARTS[:1] if contaminated else CORESET_PARTS
        self.part_names = MODEL_PARTS + (coreset_parts if keep_rows else ())
        self.register_buffer("groups", hidden_groups(len(model.schema.modelled)))
        with torch.no_grad():
            self._fit(typical)

    def forward(self, raw: RawBatch, *, are_training_rows: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Strangeness (B,), its standardised parts (B, parts), conditional nats (B, K), and codes (B, G, L).

        The codes are those of `conditional`. A training row is no neighbour of its own.
        """
        conditional, residual, codes = self.conditional(raw)
        parts = [conditional.sum(dim=1), self._whitened(residual)]
        if self.has_coreset:
            distances = self.distances(raw)
            if are_training_rows:
                distances = distances.masked_fill(distances < 1.01 * SMALLEST_DISTANCE, torch.inf)
            parts += self._to_coreset(distances)
        scaled = (torch.stack(parts, dim=1) - self.centre) / self.spread
        # Signed logarithm: a part that is off by thousands still leaves the others a say.
        compressed = torch.sign(scaled) * torch.log(1.0 + scaled.abs())
        return compressed.mean(dim=1), compressed, conditional, codes

    def conditional(self, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K) nats of every column given the others, (B, R) what the prediction is off by, and (B, G, L) codes.

        The codes are those of the rows with one group of columns after the other hidden.
        """
        model = self.model
        nats, residual, codes = torch.zeros(()), torch.zeros(()), []
        for level in self.groups.unbind(0):
            mean, _ = model.posterior(raw, Corruption(level.unsqueeze(0), None))
            nats = nats + level * model.column_nats(raw, mean)
            residual = residual + level * model.residuals(raw, mean)
            codes.append(mean)
        return nats, residual, torch.stack(codes, dim=1)

    @property
    def hidden_in(self) -> dict[str, int]:
        """The group in which each column is hidden."""
        columns = [column.name for column in self.model.schema.modelled]
        return dict(zip(columns, self.groups.argmax(dim=0).tolist(), strict=True))

    def distances(self, raw: RawBatch) -> Tensor:
        """(B, N) to the rows of the coreset."""
        x, rows = self.model.features(raw), self.coreset
        squared = x.square().sum(dim=1, keepdim=True) + rows.square().sum(dim=1) - 2.0 * x @ rows.T
        return torch.sqrt(squared.clamp(min=0.0) + SMALLEST_DISTANCE**2)

    def _to_coreset(self, distances: Tensor) -> list[Tensor]:
        log_distances = torch.log(distances)
        relative = _smallest(log_distances - self.log_usual)
        parts = [_smallest(distances).mean(dim=1).log(), relative.mean(dim=1)]
        return parts[: len(self.part_names) - len(MODEL_PARTS)]

    def _whitened(self, residual: Tensor) -> Tensor:
        return (residual @ self.whitening).square().sum(dim=1)

    def _fit(self, typical: RawBatch) -> None:
        num_rows = len(next(iter(typical.values())))
        batches = [
            {name: tensor[first : first + FIT_ROWS] for name, tensor in typical.items()}
            for first in range(0, num_rows, FIT_ROWS)
        ]
        found = [self.conditional(batch) for batch in batches]
        residual = torch.cat([residual for _, residual, _ in found]).double()
        covariance = residual.T @ residual / num_rows + RIDGE * torch.eye(residual.shape[1], dtype=torch.float64)
        # L with L L' the inverse of the covariance: |r L|^2 is the squared Mahalanobis length of r.
        self.register_buffer("whitening", torch.linalg.cholesky(torch.linalg.inv(covariance)).float())
        parts = [torch.cat([nats.sum(dim=1) for nats, _, _ in found]), self._whitened(residual.float())]
        if self.has_coreset:
            self.register_buffer("coreset", torch.cat([self.model.features(batch) for batch in batches]))
            apart = []  # distances of the rows to each other, not to themselves
            for index, batch in enumerate(batches):
                distances = self.distances(batch)
                rows = torch.arange(len(distances))
                distances[rows, index * FIT_ROWS + rows] = torch.inf
                apart.append(distances)
            self.register_buffer("log_usual", torch.cat([_smallest(d).mean(dim=1).log() for d in apart]))
            near = [self._to_coreset(distances) for distances in apart]
            parts += [torch.cat(part) for part in zip(*near, strict=True)]
        values = torch.stack(parts, dim=1)
        centre = values.median(dim=0).values
        spread = 1.4826 * (values - centre).abs().median(dim=0).values  # of a Gaussian: its standard deviation
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread.clamp(min=1e-3))


@torch.no_grad()
def _least_strange(strangeness: Strangeness, rows: RawBatch) -> RawBatch:
    num_rows = len(next(iter(rows.values())))
    scores = [
        strangeness({name: tensor[first : first + FIT_ROWS] for name, tensor in rows.items()})[0]
        for first in range(0, num_rows, FIT_ROWS)
    ]
    num_kept = max(2, round((1.0 - STRANGEST_SHARE) * num_rows))
    kept = torch.cat(scores).argsort()[:num_kept].sort().values
    return {name: tensor[kept] for name, tensor in rows.items()}


def can_fit(model: VariationalAutoencoder) -> bool:
    """Whether a model tells the strangeness of rows: it must be a denoising one, of rows that are not too wide."""
    return model.corruptor is not None and model.num_features <= MAX_FEATURES


def choose_coreset(reader: Reader, *, max_rows: int) -> Arrays:
    """Distinct training rows, drawn at random: at most `max_rows`, and at most 4,096."""
    max_rows = min(max_rows, MAX_CORESET_ROWS)
    # Two epochs of a small data set: each leaves out what does not fill a batch.
    num_batches = min(2 * reader.steps_per_epoch, -(-max_rows // reader.batch_size))
    batches = list(itertools.islice(reader.batches(0), num_batches))
    rows = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
    together = np.concatenate([array.astype(np.float64) for array in rows.values()], axis=1)
    _, first = np.unique(together, axis=0, return_index=True)
    return select(rows, np.sort(first)[:max_rows])


def _smallest(values: Tensor) -> Tensor:
    """(B, 5) the smallest of each row, in rising order."""
    # The row itself is no neighbour of its own, so that of N rows at most N - 1 are.
    return torch.topk(values, min(NUM_NEIGHBOURS, values.shape[1] - 1), dim=1, largest=False).values
