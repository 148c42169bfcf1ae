"""Blocks: how columns of one role enter the network, what density they get, and how they leave it in data units.

A block is part of the network, so training, validation and every exported graph normalise in exactly one way.

Densities of numbers are per standard deviation of their column: nats do not change with its unit (log stddev turns
them into those of the unit), and a null, which has a probability, can be weighed against a value, which has a density.
In the column's own unit an ordinary value of a wide column would cost more than a null.

Letters in shapes: B rows, C columns (or elements of the vector or image) of the block, F encoder features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from parvae.schema import (
    FIRST_LEVEL_CODE,
    NULL_CODE,
    UNSEEN_CODE,
    BooleanFacts,
    CategoryFacts,
    Column,
    ImageFacts,
    Input,
    NumericFacts,
    Role,
    VectorFacts,
)
from parvae_pipeline.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    SharedGaussian,
    standard_normal_cdf,
)

MAX_STANDARD_UNITS = 1e6
"""Standardised values are cut here, so that no finite input makes an infinite score in float32."""
MAX_ENCODER_UNITS = 20.0
"""The encoder sees standardised values cut here; the likelihood still sees how far out they are."""
MIN_SCALE = 1e-2
"""Smallest scale of a numeric density, in standard deviations of the column. A tenth of it makes the gradients of a
column that is mostly one value (Adult's capital gain) a hundred times as large, and training skips them."""


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
        return self.num_values + (self.presence.num_parameters if self.presence else 0)

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
        values = self.to_data_units(self.likelihood.draw(parameters, noise[:, : self.num_values]), drawn=True)
        if self.presence is None or not self.presence.num_parameters:
            return values
        # Columns that never were null are never drawn as null.
        null = standard_normal_cdf(noise[:, self.num_values :]) < torch.sigmoid(logits)
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


class NumericBlock(Block):
    """Numeric columns: standardised in float64, Gaussian with learned scale. NaN and infinities read as null."""

    means: Tensor
    stddevs: Tensor
    minima: Tensor
    maxima: Tensor
    whole: Tensor

    def __init__(self, block: Input, num_rows: int) -> None:
        super().__init__(block)
        facts = [column.facts_as(NumericFacts) for column in block.columns]
        stddevs = torch.tensor([fact.stddev or 1.0 for fact in facts], dtype=torch.float64)
        resolutions = torch.tensor([fact.resolution for fact in facts], dtype=torch.float64)
        # float64: an epoch in seconds standardised in float32 is off by 0.06 standard deviations.
        self.register_buffer("means", torch.tensor([fact.mean for fact in facts], dtype=torch.float64))
        self.register_buffer("stddevs", stddevs)
        self.register_buffer("minima", torch.tensor([fact.minimum for fact in facts], dtype=torch.float64))
        self.register_buffer("maxima", torch.tensor([fact.maximum for fact in facts], dtype=torch.float64))
        self.register_buffer("whole", torch.tensor([column.family == "integer" for column in block.columns]))
        self.presence = Presence(block.columns, num_rows)
        self.likelihood = Gaussian((0.5 * resolutions / stddevs).clamp(min=MIN_SCALE).float())
        self.num_values = len(block.columns)
        self.num_features = self.num_values + self.presence.num_parameters

    def target(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        present = torch.isfinite(raw)
        standardised = (torch.where(present, raw, self.means) - self.means) / self.stddevs
        return standardised.clamp(-MAX_STANDARD_UNITS, MAX_STANDARD_UNITS).float(), present

    def features(self, raw: Tensor) -> Tensor:
        target, present = self.target(raw)
        return torch.cat([target.clamp(-MAX_ENCODER_UNITS, MAX_ENCODER_UNITS), self._indicators(present)], dim=1)

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        restored = values.double() * self.stddevs + self.means
        if drawn:
            restored = torch.minimum(torch.maximum(restored, self.minima), self.maxima)
        return torch.where(self.whole, torch.round(restored), restored)


class BooleanBlock(Block):
    """Boolean columns as 0, 1 and NaN for null: Bernoulli."""

    shares: Tensor

    def __init__(self, block: Input, num_rows: int) -> None:
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

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        return values


class CategoryBlock(Block):
    """Category columns as codes (null, unseen, then the levels): one learned embedding a code, categorical."""

    offsets: Tensor

    def __init__(self, block: Input, num_rows: int) -> None:
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

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        return values + FIRST_LEVEL_CODE

    def set_null(self, values: Tensor, null: Tensor) -> Tensor:
        return torch.where(null, NULL_CODE, values)


class VectorBlock(Block):
    """One vector column: 0/1 elements Bernoulli, whole numbers to 255 discretised logistic, others shared Gaussian."""

    def __init__(self, block: Input, num_rows: int) -> None:
        super().__init__(block)
        facts = block.columns[0].facts_as(VectorFacts)
        self.is_binary = facts.is_binary
        self.is_uint8 = facts.element == "uint8"
        self.mean_element, self.stddev_element = facts.mean, facts.stddev or 1.0
        self.num_values = self.num_features = facts.size
        if facts.is_binary:
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
            return values.to(torch.uint8) if self.is_uint8 else values
        return values * self.stddev_element + self.mean_element

    def _standardised(self, values: Tensor) -> Tensor:
        return (values - self.mean_element) / self.stddev_element


class ImageBlock(Block):
    """One image column (B, H, W, C) uint8: discretised logistic for every pixel, in channel-first order inside."""

    def __init__(self, block: Input, num_rows: int) -> None:
        super().__init__(block)
        facts = block.columns[0].facts_as(ImageFacts)
        self.height, self.width, self.channels = facts.height, facts.width, facts.channels
        self.num_values = self.num_features = facts.height * facts.width * facts.channels
        self.mean_pixel, self.stddev_pixel = facts.mean, facts.stddev or 1.0
        self.likelihood = DiscretizedLogistic(self.num_values, mean=self.mean_pixel, stddev=self.stddev_pixel)

    def target(self, raw: Tensor) -> tuple[Tensor, None]:
        return raw.permute(0, 3, 1, 2).reshape(-1, self.num_values).float(), None

    def features(self, raw: Tensor) -> Tensor:
        return (self.target(raw)[0] - self.mean_pixel) / self.stddev_pixel

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        pixels = values.reshape(-1, self.channels, self.height, self.width).permute(0, 2, 3, 1)
        return pixels.to(torch.uint8)


BLOCKS: Mapping[Role, type[NumericBlock | BooleanBlock | CategoryBlock | VectorBlock | ImageBlock]] = {
    Role.NUMERIC: NumericBlock,
    Role.BOOLEAN: BooleanBlock,
    Role.CATEGORY: CategoryBlock,
    Role.VECTOR: VectorBlock,
    Role.IMAGE: ImageBlock,
}
