"""What a block is: columns of one role on their way into the network, their density, and their way out in data units.

Letters in shapes: B rows, C columns (or elements of the vector or image) of the block, F encoder features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from parvae.schema import Column, Input
from parvae_pipeline.likelihoods import Likelihood, standard_normal_cdf

MAX_STANDARD_UNITS = 1e6
"""Standardised values are cut here, so that no finite input makes an infinite score in float32."""
MAX_ENCODER_UNITS = 20.0
"""The encoder sees standardised values cut here; the likelihood still sees how far out they are."""


class Presence(nn.Module):
    """Whether a value is null, as a Bernoulli term for every column.

    A column that had nulls in training gets a logit from the decoder. For one that had none, a null has probability
    1 / (N + 2) after N rows (Laplace's rule of succession).
    """

    nullable: Tensor
    log_null: Tensor
    log_present: Tensor

    def __init__(self, columns: tuple[Column, ...], num_rows: int) -> None:
        super().__init__()
        nulls = torch.tensor([column.num_nulls for column in columns], dtype=torch.float64)
        null_probability = (nulls + 1.0) / (num_rows + 2.0)
        self.register_buffer(
            "nullable", torch.tensor([i for i, column in enumerate(columns) if column.num_nulls]).long()
        )
        self.register_buffer("log_null", null_probability.log().float())
        self.register_buffer("log_present", torch.log1p(-null_probability).float())
        self.num_parameters = len(self.nullable)

    def log_prob(self, logits: Tensor, present: Tensor) -> Tensor:
        """(B, C) nats of `present` (B, C), from the null `logits` (B, nullable columns)."""
        constant = torch.where(present, self.log_present, self.log_null)
        if not self.num_parameters:
            return constant
        learned = -functional.softplus(torch.where(present[:, self.nullable], logits, -logits))
        return constant.index_copy(1, self.nullable, learned)

    def null_probability(self, logits: Tensor) -> Tensor:
        """(B, C) probability of null."""
        constant = self.log_null.exp().expand(logits.shape[0], -1)
        return constant.index_copy(1, self.nullable, torch.sigmoid(logits)) if self.num_parameters else constant

    def initial_parameters(self, present: Tensor) -> Tensor:
        """(nullable,) logits of the share of nulls in `present` (N, C)."""
        share = ((~present[:, self.nullable]).sum(0) + 0.5) / (len(present) + 1.0)
        return torch.log(share) - torch.log1p(-share)


class Block(nn.Module, ABC):
    """Columns of one role: features in, density, data units out.

    Subclasses set `likelihood`, `num_features` and `num_values`, and say how raw values become targets and back.
    """

    likelihood: Likelihood
    num_features: int
    num_values: int
    """C: values that the likelihood covers."""

    def __init__(self, block: Input) -> None:
        super().__init__()
        self.name = block.name
        self.role = block.role
        self.columns = block.columns
        self.presence: Presence | None = None

    @abstractmethod
    def target(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C) what the likelihood sees, and (B, C) where it is present (None: everywhere)."""

    @abstractmethod
    def features(self, raw: Tensor) -> Tensor:
        """(B, F) what the encoder sees."""

    @abstractmethod
    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        """Values of the likelihood's mean or draw as the columns hold them, without nulls."""

    def set_null(self, values: Tensor, null: Tensor) -> Tensor:
        """`values` in data units with null where `null` (B, C)."""
        return torch.where(null, torch.nan, values)

    @property
    def num_parameters(self) -> int:
        """Decoder outputs a row: the likelihood's, then one logit for each column that may be null."""
        return self.likelihood.num_parameters + (self.presence.num_parameters if self.presence else 0)

    @property
    def num_noise(self) -> int:
        """Standard normal numbers that one drawn row takes."""
        return self.likelihood.num_noise + (self.presence.num_parameters if self.presence else 0)

    @property
    def feature_columns(self) -> Tensor:
        """(F,) the value that each feature tells of: the values themselves first, then indicators of null."""
        nullable = self.presence.nullable if self.presence else torch.zeros(0, dtype=torch.long)
        return torch.cat([torch.arange(self.num_values), nullable])

    def residual(self, parameters: Tensor, raw: Tensor) -> Tensor:
        """(B, C) what the prediction is off by, in standard units; 0 where null."""
        target, present = self.target(raw)
        missed = target - self.likelihood.mean(self._split(parameters)[0])
        return missed if present is None else torch.where(present, missed, 0.0)

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        """(B, columns) nats of every column; the term of a null is the nats of its being null."""
        target, present = self.target(raw)
        parameters, logits = self._split(parameters)
        log_prob = self.likelihood.log_prob(parameters, target)
        if self.presence is not None and present is not None:
            return torch.where(present, log_prob, 0.0) + self.presence.log_prob(logits, present)
        return log_prob.sum(dim=1, keepdim=True)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected row in data units; null where that is the likelier."""
        parameters, logits = self._split(parameters)
        values = self.to_data_units(self.likelihood.mean(parameters), drawn=False)
        return values if self.presence is None else self.set_null(values, self.presence.null_probability(logits) > 0.5)

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """A row drawn with standard normal `noise` (B, num_noise), in data units."""
        parameters, logits = self._split(parameters)
        num_noise = self.likelihood.num_noise
        values = self.to_data_units(self.likelihood.draw(parameters, noise[:, :num_noise]), drawn=True)
        if self.presence is None or not self.presence.num_parameters:
            return values
        # Columns that never were null are never drawn as null.
        null = standard_normal_cdf(noise[:, num_noise:]) < torch.sigmoid(logits)
        everywhere = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        return self.set_null(values, everywhere.index_copy(1, self.presence.nullable, null))

    def initial_parameters(self, raw: Tensor) -> Tensor:
        """(num_parameters,) the output bias that fits the `raw` rows before anything is learned."""
        target, present = self.target(raw)
        everywhere = torch.ones_like(target, dtype=torch.bool) if present is None else present
        initial = self.likelihood.initial_parameters(target, everywhere)
        return initial if self.presence is None else torch.cat([initial, self.presence.initial_parameters(everywhere)])

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        size = self.likelihood.num_parameters
        return parameters[:, :size], parameters[:, size:]

    def _indicators(self, present: Tensor) -> Tensor:
        # Only columns with nulls in training: the weights of an indicator that never moves would stay random.
        assert self.presence is not None
        return (~present[:, self.presence.nullable]).float()
