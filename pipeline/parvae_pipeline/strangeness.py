"""How strange a row is: how far the model misses it, and how far known rows are.

Each part is put on one scale by typical rows and compressed. The mean of the model's parts is one vote, and each part
of the known rows (the coreset) is another; the strangeness of a row is the mean of the votes. One rule for all data.

nats        of the row, told from its code
residual    squared distance between the row and its prediction, whitened by the residuals of typical rows
hidden      the same with every column predicted while it is hidden from the encoder
distance    log of the mean distance to the 5 nearest of at most 4,096 training rows; where these are contaminated, to
            the nearest fifth of them, which a crowd of anomalies does not fill
isolation   the same with each distance divided by what is usual around that training row (as the local outlier
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

MODEL_PARTS = ("nats", "residual", "hidden")
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
"""Of contaminated typical rows, those that are left out; and as many of the others are taken for neighbours."""
FIT_ROWS = 512
"""Rows at a time while fitting."""


class Strangeness(nn.Module):
    """The parts of the strangeness of rows, and their mean; fitted on typical rows."""

    whitening: Tensor
    hidden_whitening: Tensor
    origin: Tensor
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
        self.model, self.has_coreset, self.contaminated = model, keep_rows, contaminated
        # Anomalies that lie close together are not isolated: known rows are then only a matter of distance.
        coreset_parts = CORESET_PARTS[:1] if contaminated else CORESET_PARTS
        self.part_names = MODEL_PARTS + (coreset_parts if keep_rows else ())
        self.register_buffer("groups", hidden_groups(len(model.schema.modelled)))
        with torch.no_grad():
            self._fit(typical)

    def forward(self, raw: RawBatch, *, are_training_rows: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Strangeness (B,), its standardised parts (B, parts), conditional nats (B, K), and codes (B, G, L).

        The codes are those of `conditional`. A training row is no neighbour of its own; among the many of a
        contaminated coreset it does not matter, and rows with many copies are normal there.
        """
        conditional, hidden_residual, codes = self.conditional(raw)
        parts = self._model_parts(*self.told(raw), hidden_residual)
        if self.has_coreset:
            distances = self.distances(raw)
            if are_training_rows and not self.contaminated:
                distances = distances.masked_fill(distances < 1.01 * SMALLEST_DISTANCE, torch.inf)
            parts += self._to_coreset(distances)
        scaled = (torch.stack(parts, dim=1) - self.centre) / self.spread
        # Signed logarithm: a part that is off by thousands still leaves the others a say.
        compressed = torch.sign(scaled) * torch.log(1.0 + scaled.abs())
        votes = torch.cat(
            [compressed[:, : len(MODEL_PARTS)].mean(dim=1, keepdim=True), compressed[:, len(MODEL_PARTS) :]], dim=1
        )
        return votes.mean(dim=1), compressed, conditional, codes

    def told(self, raw: RawBatch) -> tuple[Tensor, Tensor]:
        """(B,) nats of the rows at their codes, and (B, R) what their prediction is off by."""
        mean, _ = self.model.posterior(raw)
        return self.model.column_nats(raw, mean).sum(dim=1), self.model.residuals(raw, mean)

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
        x, rows = self.model.features(raw) - self.origin, self.coreset
        squared = x.square().sum(dim=1, keepdim=True) + rows.square().sum(dim=1) - 2.0 * x @ rows.T
        return torch.sqrt(squared.clamp(min=0.0) + SMALLEST_DISTANCE**2)

    def _to_coreset(self, distances: Tensor) -> list[Tensor]:
        parts = [self._nearest(distances).mean(dim=1).log()]
        if not self.contaminated:
            parts.append(self._nearest(torch.log(distances) - self.log_usual).mean(dim=1))
        return parts

    def _nearest(self, distances: Tensor) -> Tensor:
        """(B, neighbours) the smallest of each row, in rising order."""
        num_rows = distances.shape[1]
        num_wanted = NUM_NEIGHBOURS
        if self.contaminated:
            num_wanted = max(num_wanted, round(STRANGEST_SHARE * num_rows))
        # The row itself is no neighbour of its own, so that of N rows at most N - 1 are.
        return torch.topk(distances, min(num_wanted, num_rows - 1), dim=1, largest=False).values

    def _model_parts(self, nats: Tensor, residual: Tensor, hidden_residual: Tensor) -> list[Tensor]:
        pairs = ((residual, self.whitening), (hidden_residual, self.hidden_whitening))
        return [nats, *((residual @ whitening).square().sum(dim=1) for residual, whitening in pairs)]

    def _fit(self, typical: RawBatch) -> None:
        num_rows = len(next(iter(typical.values())))
        batches = [
            {name: tensor[first : first + FIT_ROWS] for name, tensor in typical.items()}
            for first in range(0, num_rows, FIT_ROWS)
        ]
        nats, residual = (torch.cat(values) for values in zip(*[self.told(batch) for batch in batches], strict=True))
        hidden_residual = torch.cat([self.conditional(batch)[1] for batch in batches])
        self.register_buffer("whitening", _whitening(residual))
        self.register_buffer("hidden_whitening", _whitening(hidden_residual))
        parts = self._model_parts(nats, residual, hidden_residual)
        if self.has_coreset:
            features = torch.cat([self.model.features(batch) for batch in batches])
            # From their middle: far from 0 the square of a short distance would be a small difference of large numbers.
            self.register_buffer("origin", features.mean(dim=0))
            self.register_buffer("coreset", features - self.origin)
            apart = []  # distances of the rows to each other, not to themselves
            for index, batch in enumerate(batches):
                distances = self.distances(batch)
                rows = torch.arange(len(distances))
                distances[rows, index * FIT_ROWS + rows] = torch.inf
                apart.append(distances)
            self.register_buffer("log_usual", torch.cat([self._nearest(d).mean(dim=1).log() for d in apart]))
            near = [self._to_coreset(distances) for distances in apart]
            parts += [torch.cat(part) for part in zip(*near, strict=True)]
        values = torch.stack(parts, dim=1)
        centre = values.median(dim=0).values
        spread = 1.4826 * (values - centre).abs().median(dim=0).values  # of a Gaussian: its standard deviation
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread.clamp(min=1e-3))


def _whitening(residual: Tensor) -> Tensor:
    """(R, R) L with L L' the inverse covariance of residuals r (N, R): |r L|^2 is their squared Mahalanobis length."""
    wide = residual.double()
    covariance = wide.T @ wide / len(wide) + RIDGE * torch.eye(wide.shape[1], dtype=torch.float64)
    whitening: Tensor = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return whitening.float()


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


def choose_coreset(reader: Reader, *, max_rows: int, contaminated: bool = False) -> Arrays:
    """Training rows, drawn at random: at most `max_rows`, and at most 4,096.

    They are distinct, so that copies do not crowd out other neighbours; among `contaminated` rows copies stay, for
    anomalies have fewer.
    """
    max_rows = min(max_rows, MAX_CORESET_ROWS)
    # Two epochs of a small data set: each leaves out what does not fill a batch.
    num_batches = min(2 * reader.steps_per_epoch, -(-max_rows // reader.batch_size))
    batches = list(itertools.islice(reader.batches(0), num_batches))
    rows = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
    if contaminated:
        num_drawn = min(max_rows, reader.steps_per_epoch * reader.batch_size)  # of one epoch: none comes twice
        return select(rows, slice(0, num_drawn))
    together = np.concatenate([array.astype(np.float64) for array in rows.values()], axis=1)
    _, first = np.unique(together, axis=0, return_index=True)
    return select(rows, np.sort(first)[:max_rows])
