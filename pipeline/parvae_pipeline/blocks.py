"""Blocks: how columns of one role enter the network, what density they get, and how they leave it in data units.

A block is part of the network, so training, validation and every exported graph normalise in exactly one way.

Densities of numbers are per standard deviation of their column: nats do not change with its unit (log stddev turns
them into those of the unit), and a null, which has a probability, can be weighed against a value, which has a density.
In the column's own unit an ordinary value of a wide column would cost more than a null.

Letters in shapes: B rows, C columns (or elements of the vector or image) of the block, F encoder features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from parvae.errors import SettingError
from parvae.schema import (
    FIRST_LEVEL_CODE,
    NULL_CODE,
    UNSEEN_CODE,
    BooleanFacts,
    CategoryFacts,
    Input,
    Role,
    VectorFacts,
)
from parvae_pipeline.block import MAX_ENCODER_UNITS, MAX_STANDARD_UNITS, Block, Presence
from parvae_pipeline.image_block import ImageBlock
from parvae_pipeline.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    SharedGaussian,
    textbook_likelihood,
)
from parvae_pipeline.numeric_block import NumericBlock
from parvae_pipeline.time_block import TimestampBlock


class BooleanBlock(Block):
    """Boolean columns as 0, 1 and NaN for null: Bernoulli."""

    shares: Tensor

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block)
        shares = [column.facts_as(BooleanFacts).share_true for column in block.columns]
        self.register_buffer("shares", torch.tensor(shares))
        self.presence = Presence(block.columns, num_rows)
        self.likelihood = Bernoulli(len(block.columns), num_rows=num_rows)
        self.num_values = len(block.columns)
        self.num_features = self.num_values + self.presence.num_parameters

    def target(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        present = torch.isfinite(raw)
        return torch.where(present, raw, self.shares), present

    def features(self, raw: Tensor) -> Tensor:
        target, present = self.target(raw)
        return torch.cat([2.0 * target - 1.0, self._indicators(present)], dim=1)

    def residual(self, parameters: Tensor, raw: Tensor) -> Tensor:
        """(B, C) deviance residuals: the square root of twice the nats."""
        return torch.sqrt(2.0 * (-self.log_prob(parameters, raw)).clamp(min=0.0))

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        return values


class CategoryBlock(Block):
    """Category columns as codes (null, unseen, then the levels): one learned embedding a code, categorical."""

    offsets: Tensor

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block)
        facts = [column.facts_as(CategoryFacts) for column in block.columns]
        num_codes = torch.tensor([FIRST_LEVEL_CODE + len(fact.levels) for fact in facts])
        self.register_buffer("offsets", num_codes.cumsum(0) - num_codes)
        size = min(32, 2 + round(math.sqrt(int(num_codes.max()))))
        self.embedding = nn.Embedding(int(num_codes.sum()), size)
        num_unlisted = torch.tensor([fact.num_unlisted for fact in facts], dtype=torch.float64)
        self.presence = Presence(block.columns, num_rows)
        self.likelihood = Categorical([len(fact.levels) for fact in facts], (num_unlisted + 1.0) / (num_rows + 2.0))
        self.num_values = len(block.columns)
        self.num_features = self.num_values * size
        self.start_unseen_codes()

    @torch.no_grad()
    def start_unseen_codes(self) -> None:
        """Codes that training may never touch start as "nothing known", not at random."""
        for code in (NULL_CODE, UNSEEN_CODE):
            self.embedding.weight[self.offsets + code] = 0.0

    def target(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return raw - FIRST_LEVEL_CODE, raw != NULL_CODE

    def features(self, raw: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(raw + self.offsets)
        return embedded.flatten(1)

    @property
    def feature_columns(self) -> Tensor:
        return torch.arange(self.num_values).repeat_interleave(self.embedding.embedding_dim)

    def residual(self, parameters: Tensor, raw: Tensor) -> Tensor:
        """(B, C) deviance residuals: the square root of twice the nats."""
        return torch.sqrt(2.0 * (-self.log_prob(parameters, raw)).clamp(min=0.0))

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        return values + FIRST_LEVEL_CODE

    def set_null(self, values: Tensor, null: Tensor) -> Tensor:
        return torch.where(null, NULL_CODE, values)


class VectorBlock(Block):
    """One vector column: 0/1 elements Bernoulli, whole numbers to 255 discretised logistic, others shared Gaussian."""

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block)
        facts = block.columns[0].facts_as(VectorFacts)
        self.is_binary = facts.is_binary
        self.is_uint8 = facts.element == "uint8"
        self.mean_element, self.stddev_element = facts.mean, facts.stddev or 1.0
        self.num_values = self.num_features = facts.size
        if likelihood == "bce" and not (facts.is_binary or self.is_uint8):
            raise SettingError(
                f"model.likelihood is 'bce', which needs numbers from 0 to 1, or bytes; vector column {block.name!r} "
                "has others: take 'auto' or 'mse'"
            )
        if likelihood != "auto":
            high = 1.0 if facts.is_binary else 255.0
            self.likelihood = textbook_likelihood(likelihood, facts.size, self._target_moments(), high)
        elif facts.is_binary:
            self.likelihood = Bernoulli(facts.size, num_rows=num_rows)
        elif self.is_uint8:
            self.likelihood = DiscretizedLogistic(facts.size, mean=facts.mean, stddev=self.stddev_element)
        else:
            self.likelihood = SharedGaussian(facts.size)

    def target(self, raw: Tensor) -> tuple[Tensor, None]:
        values = raw.float()
        if self.is_binary or self.is_uint8:
            return values, None
        # An element that is no number is as far out as can be: a broken embedding must not score like a good one.
        standardised = torch.nan_to_num(self._standardised(values), nan=MAX_STANDARD_UNITS)
        return standardised.clamp(-MAX_STANDARD_UNITS, MAX_STANDARD_UNITS), None

    def features(self, raw: Tensor) -> Tensor:
        standardised = torch.nan_to_num(self._standardised(raw.float()), nan=0.0)
        return standardised.clamp(-MAX_ENCODER_UNITS, MAX_ENCODER_UNITS)

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        if self.is_binary or self.is_uint8:
            return torch.round(values).clamp(0.0, 255.0).to(torch.uint8) if self.is_uint8 else values
        return values * self.stddev_element + self.mean_element

    def _target_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the targets."""
        return (self.mean_element, self.stddev_element) if self.is_binary or self.is_uint8 else (0.0, 1.0)

    def _standardised(self, values: Tensor) -> Tensor:
        return (values - self.mean_element) / self.stddev_element


BLOCKS: Mapping[Role, type[NumericBlock | BooleanBlock | CategoryBlock | VectorBlock | ImageBlock]] = {
    Role.NUMERIC: NumericBlock,
    Role.TIMESTAMP: TimestampBlock,
    Role.BOOLEAN: BooleanBlock,
    Role.CATEGORY: CategoryBlock,
    Role.VECTOR: VectorBlock,
    Role.IMAGE: ImageBlock,
}
