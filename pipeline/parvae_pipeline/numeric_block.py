"""Numbers: how numeric columns enter the network, what density they get, and how they leave it in data units.

Letters in shapes: B rows, C columns, F encoder features.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional

from parvae.errors import SettingError
from parvae.schema import Input, NumericFacts
from parvae_pipeline.atoms import AtomTable
from parvae_pipeline.block import MAX_ENCODER_UNITS, MAX_STANDARD_UNITS, Block, Presence
from parvae_pipeline.likelihoods import Gaussian, Likelihood, UnitGaussian
from parvae_pipeline.numeric_likelihoods import ByColumn, LogisticMixture, NegativeBinomial, Spiked, StudentT

MIN_SCALE = 1e-2
"""Smallest scale of a numeric density, in standard deviations of the column: without it the density, and the gradient,
of a column that follows from others has no bound."""
MIN_STEP_SHARE = 0.02
"""From this many standard deviations on the step of a grid is wide enough for the probability of a step. Finer grids
are continuous: a value in thousands of steps would cost more than a null, which has a probability too."""
MAX_LOG = 700.0
"""Beyond, the exponential is infinite in float64."""


class NumericBlock(Block):
    """Numeric columns, each with the density that its facts name, standardised in float64.

    NaN and infinities read as null. With `likelihood` "mse" every column has a Gaussian of scale 1.
    """

    means: Tensor
    stddevs: Tensor
    minima: Tensor
    maxima: Tensor
    whole: Tensor
    logs: Tensor
    atom_columns: Tensor
    atoms: Tensor
    atom_targets: Tensor
    indicated: Tensor
    indicated_places: Tensor
    to_indicated: Tensor
    steps: Tensor
    offsets: Tensor

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block)
        if likelihood == "bce":
            raise SettingError(
                f"model.likelihood is 'bce', which needs values from 0 to 1 in vectors or images; column "
                f"{block.columns[0].name!r} is numeric: take 'auto' or 'mse', or leave it out with "
                f"--columns {block.columns[0].name}:ignored"
            )
        facts = [column.facts_as(NumericFacts) for column in block.columns]
        # float64: an epoch in seconds standardised in float32 is off by 0.06 standard deviations.
        self.register_buffer("means", torch.tensor([fact.mean for fact in facts], dtype=torch.float64))
        self.register_buffer("stddevs", torch.tensor([fact.stddev or 1.0 for fact in facts], dtype=torch.float64))
        self.register_buffer("minima", torch.tensor([fact.minimum for fact in facts], dtype=torch.float64))
        self.register_buffer("maxima", torch.tensor([fact.maximum for fact in facts], dtype=torch.float64))
        are_whole = [column.family == "integer" or column.holds_lengths for column in block.columns]
        self.register_buffer("whole", torch.tensor(are_whole))
        # What follows from the facts alone stays out of the checkpoint.
        self._has_logs = any(fact.transform == "log1p" for fact in facts)
        self._set("logs", torch.tensor([fact.transform == "log1p" for fact in facts]))
        atom_columns = [index for index, fact in enumerate(facts) if fact.atoms]
        self._has_atoms = bool(atom_columns)
        self._set("atom_columns", torch.tensor(atom_columns, dtype=torch.long))
        num_atoms = max(len(fact.atoms) for fact in facts)
        padded = [[*facts[i].atoms, *[math.nan] * (num_atoms - len(facts[i].atoms))] for i in atom_columns]
        self._set("atoms", torch.tensor(padded, dtype=torch.float64).reshape(len(padded), num_atoms))
        self._set("atom_targets", self._standardised(self.atoms.T, self.atom_columns).float().T.contiguous())
        self.atom_table, self.atom_target_table = AtomTable(self.atoms), AtomTable(self.atom_targets)
        held = [(column, place) for column, i in enumerate(atom_columns) for place in range(len(facts[i].atoms))]
        self._set("indicated", torch.tensor([column for column, _ in held], dtype=torch.long))
        self._set("indicated_places", torch.tensor([float(place) for _, place in held]))
        self._set("to_indicated", functional.one_hot(self.indicated, max(1, len(atom_columns))).T.float())
        self._set("steps", torch.tensor([fact.step for fact in facts], dtype=torch.float64))
        self._set("offsets", torch.tensor([_grid_offset(fact) for fact in facts], dtype=torch.float64))
        self.presence = Presence(block.columns, num_rows)
        self.num_values = len(block.columns)
        if likelihood == "mse":
            self.likelihood = UnitGaussian(self.num_values)
        else:
            self.likelihood = self._likelihood(facts, num_rows)
        self.num_features = self.num_values + len(self.indicated) + self.presence.num_parameters

    def target(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        present = torch.isfinite(raw)
        standardised = self._standardised(torch.where(present, raw, 0.0))
        target = torch.where(present, standardised, 0.0).clamp(-MAX_STANDARD_UNITS, MAX_STANDARD_UNITS).float()
        if self._has_atoms:
            # In the column's own numbers, where equality is exact.
            place = self.atom_table.find(raw.index_select(1, self.atom_columns))
            target = self._where_atom(place, self.atom_table.at(self.atom_targets, place), target)
        return target, present

    def features(self, raw: Tensor) -> Tensor:
        target, present = self.target(raw)
        features = [target, self._indicators(present)]
        if self._has_atoms:
            place = self.atom_table.find(raw.index_select(1, self.atom_columns))
            # An atom has an indicator of its own; how far it lies from the rest says nothing more.
            target = self._where_atom(place, torch.zeros_like(place, dtype=target.dtype), target)
            # A product with zeros and ones repeats the places: onnxruntime gathers one number at a time, and slowly.
            features = [target, (place.float() @ self.to_indicated == self.indicated_places).float(), features[1]]
        features[0] = target.clamp(-MAX_ENCODER_UNITS, MAX_ENCODER_UNITS)
        return torch.cat(features, dim=1)

    @property
    def feature_columns(self) -> Tensor:
        assert self.presence is not None
        atoms = self.atom_columns[self.indicated]
        return torch.cat([torch.arange(self.num_values), atoms, self.presence.nullable])

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        restored = values.double() * self.stddevs + self.means
        if self._has_logs:
            size = torch.exp(restored.abs().clamp(max=MAX_LOG)) - 1.0
            restored = torch.where(self.logs, torch.sign(restored) * size, restored)
        restored = self._on_grid(restored)
        if drawn:
            restored = torch.minimum(torch.maximum(restored, self.minima), self.maxima)
        if self._has_atoms:
            place = self.atom_target_table.find(values.index_select(1, self.atom_columns))
            restored = self._where_atom(place, self.atom_target_table.at(self.atoms, place), restored)
        return torch.where(self.whole, torch.round(restored), restored)

    def _where_atom(self, place: Tensor, at_atom: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, C) `elsewhere`, but `at_atom` (B, columns with atoms) where `place` says that a value is one."""
        chosen = torch.where(place >= 0, at_atom, elsewhere.index_select(1, self.atom_columns))
        return elsewhere.index_copy(1, self.atom_columns, chosen)

    def _on_grid(self, values: Tensor) -> Tensor:
        steps = torch.where(self.steps > 0.0, self.steps, 1.0)
        inverse = 1.0 / steps
        whole_inverse = torch.round(inverse)
        number = torch.round((values - self.offsets) / steps)
        # 3 / 10 is the double next to 0.3, and 3 * 0.1 is not.
        is_fraction = (inverse > 1.5) & ((inverse - whole_inverse).abs() < 1e-9 * inverse)
        snapped = torch.where(is_fraction, number / whole_inverse, number * steps) + self.offsets
        return torch.where(self.steps > 0.0, snapped, values)

    def _standardised(self, raw: Tensor, columns: Tensor | slice = slice(None)) -> Tensor:
        """Of all columns of the block, or of some."""
        transformed = raw
        if self._has_logs:
            transformed = torch.where(self.logs[columns], torch.sign(raw) * torch.log(1.0 + raw.abs()), raw)
        return (transformed - self.means[columns]) / self.stddevs[columns]

    def _likelihood(self, facts: list[NumericFacts], num_rows: int) -> Likelihood:
        """Columns of one kind of density share one object; the most frequent case, all Gaussian, is just that."""
        groups: dict[tuple[str, bool, bool], list[int]] = defaultdict(list)
        for index, fact in enumerate(facts):
            groups[fact.density, is_on_grid(fact), bool(fact.atoms)].append(index)
        parts: list[tuple[Likelihood, list[int]]] = []
        for (density, on_grid, has_atoms), columns in groups.items():
            likelihood = self._density(density, on_grid, [facts[index] for index in columns], num_rows)
            if has_atoms:
                atoms = self.atom_targets[torch.isin(self.atom_columns, torch.tensor(columns))]
                likelihood = Spiked(likelihood, atoms, torch.full((len(columns),), on_grid))
            parts.append((likelihood, columns))
        return parts[0][0] if len(parts) == 1 else ByColumn(parts)

    def _density(self, density: str, on_grid: bool, facts: list[NumericFacts], num_rows: int) -> Likelihood:
        stddevs = torch.tensor([fact.stddev or 1.0 for fact in facts], dtype=torch.float64)
        half_resolutions = 0.5 * torch.tensor([fact.resolution for fact in facts], dtype=torch.float64) / stddevs
        logs = torch.tensor([fact.transform == "log1p" for fact in facts])
        # A step in data units is none in logarithms.
        floor = torch.where(logs, 0.0, half_resolutions).clamp(min=MIN_SCALE).float()
        if density == "student":
            return StudentT(floor)
        if density == "negative_binomial":
            means = torch.tensor([fact.mean for fact in facts], dtype=torch.float64)
            max_count = int(max(fact.maximum for fact in facts))
            return NegativeBinomial(means.float(), stddevs.float(), max_count=max_count, num_rows=num_rows)
        if density == "logistic_mixture":
            if not on_grid:
                return LogisticMixture(floor)
            half_steps = (0.5 * torch.tensor([fact.step for fact in facts], dtype=torch.float64) / stddevs).float()
            # At a tenth of half a step all mass is on one number; a smaller scale would only cost precision.
            return LogisticMixture(0.1 * half_steps, half_steps)
        assert density == "gaussian", density
        return Gaussian(floor)

    def _set(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)


def is_on_grid(facts: NumericFacts) -> bool:
    """Whether the density of a column is the probability of a step of its grid."""
    if facts.density == "negative_binomial":
        return True
    wide = facts.step >= MIN_STEP_SHARE * (facts.stddev or 1.0)
    return facts.density == "logistic_mixture" and facts.transform == "none" and facts.step > 0.0 and wide


def _grid_offset(facts: NumericFacts) -> float:
    """Where the grid of a column begins: 0 where its values are multiples of the step."""
    if not facts.step:
        return 0.0
    offset = math.remainder(facts.minimum, facts.step)
    return 0.0 if abs(offset) < 1e-6 * facts.step else facts.minimum
