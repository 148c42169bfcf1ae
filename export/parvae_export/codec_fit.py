"""Fitting the codec: one small network a column, from the columns before it to the mixture of its values.

Letters in shapes: n rows, B rows of a batch, C columns, F features, W hidden units, P parameters, K components,
A atoms.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parvae.vaez.codec import (
    EDGE_UNIT,
    LOGIT_UNIT,
    MAX_DEVIATION,
    NUM_ATOMS,
    NUM_COMPONENTS,
    NUM_PARAMETERS,
    OCTAVE,
    Columns,
    piecewise_log2,
)

HIDDEN = 32
"""W, twice. Half of the rows of pendigits in steps of 2 % of a column's range, learned from the other half for 1,600
steps: 0.722 of what independent columns take; with 16 units 0.728, with 64 0.734."""
MAX_INPUTS = 24
"""Columns that one looks at: those that correlate most."""
BATCH_SIZE = 256
MIN_STEPS, MAX_STEPS = 400, 4_000
WEIGHT_UPDATES = 400_000_000
"""Steps times weights, where these allow fewer steps: about a minute on one core."""
EVALUATION_STEPS = 200
PATIENCE = 4
"""Evaluations without a better one after which fitting ends."""
HELD_OUT_SHARE, MIN_HELD_OUT = 0.1, 64
PEAK_RATE, WEIGHT_DECAY = 4e-3, 0.05
FEATURE_NOISE = 0.02
"""Standard deviations: columns within a bound come back a little off."""
MAX_DISTINCT = 256
"""With more values a column is continuous: intervals of random width stand for the bins of files."""
WIDTHS = (-9.0, -3.5)
"""Octaves of standard deviations that half such an interval spans."""
MIN_ATOM_SHARE = 0.02
MIN_LOG_SKEW = 3.0
"""From this skewness on a column is seen through a logarithm."""
SMALLEST_SHARE = 2.0**-12
"""What the coder gives the unlikeliest symbol."""


def columns_of(values: NDArray[np.float64]) -> Columns:
    """What is to be known of columns with `values` (n, C), NaN where null."""
    means, stddevs, logs, atoms = [], [], [], []
    for column in values.T:
        present = column[np.isfinite(column)]
        log = bool(_skewness(present) > MIN_LOG_SKEW)
        shown = piecewise_log2(present) if log else present
        means.append(float(shown.mean()) if len(shown) else 0.0)
        stddevs.append((float(shown.std()) if len(shown) else 0.0) or 1.0)
        logs.append(log)
        atoms.append(_atoms(present))
    columns = Columns(
        inputs=np.zeros((len(means), 0), np.int64),
        means=np.array(means),
        stddevs=np.array(stddevs),
        logs=np.array(logs),
        atoms=np.array(atoms).reshape(-1, NUM_ATOMS),
    )
    each = [columns.standardised(place, column) for place, column in enumerate(values.T)]
    seen = np.nan_to_num(np.clip(np.stack(each, axis=1), -MAX_DEVIATION, MAX_DEVIATION))
    return replace(columns, inputs=_inputs(seen))


class Networks(nn.Module):
    """Two hidden layers for every column, all columns at once."""

    def __init__(self, num_columns: int, num_features: int) -> None:
        super().__init__()
        sizes = (num_features, HIDDEN, HIDDEN, NUM_PARAMETERS)
        shapes = [(num_columns, *pair) for pair in pairwise(sizes)]
        self.weights = nn.ParameterList(torch.randn(shape) * shape[1] ** -0.5 for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(shape[0], 1, shape[2]) for shape in shapes)

    def forward(self, features: Tensor) -> Tensor:
        """(C, B, P) from (C, B, F)."""
        *hidden, (last, bias) = zip(self.weights, self.biases, strict=True)
        for weight, offset in hidden:
            features = torch.relu(features @ weight + offset)
        parameters: Tensor = features @ last + bias
        return parameters


def fit_networks(
    columns: Columns, values: NDArray[np.float64], *, seed: int, max_steps: int = MAX_STEPS
) -> tuple[Networks, float]:
    """Networks for values (n, C), and the bits a row that held-out rows take by them in bins of a middling width."""
    rows = _Rows(columns, values)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(values), generator=generator)
    num_held_out = min(max(MIN_HELD_OUT, int(HELD_OUT_SHARE * len(values))), len(values) // 2, 4096)
    held_out, training = order[:num_held_out], order[num_held_out:]
    torch.manual_seed(seed)
    networks = Networks(values.shape[1], rows.seen.shape[2])
    _start(networks, rows, training[:4096])
    optimizer = torch.optim.AdamW(networks.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    num_weights = sum(parameter.numel() for parameter in networks.parameters())
    num_steps = int(np.clip(WEIGHT_UPDATES // num_weights, min(MIN_STEPS, max_steps), max_steps))
    best_bits, best, since = float("inf"), copy.deepcopy(networks.state_dict()), 0
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / 100) * max(0.02, 1.0 - step / num_steps)
        chosen = training[torch.randint(len(training), (BATCH_SIZE,), generator=generator)]
        loss = rows.bits(networks, chosen, generator).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 5.0)
        optimizer.step()
        if (step + 1) % EVALUATION_STEPS and step + 1 < num_steps:
            continue
        with torch.no_grad():
            bits = float(rows.bits(networks, held_out).mean())
        since = 0 if bits < best_bits else since + 1
        if bits < best_bits:
            best_bits, best = bits, copy.deepcopy(networks.state_dict())
        if since >= PATIENCE:
            break
    networks.load_state_dict(best)
    return networks, best_bits


class _Rows:
    """Features and targets of the rows."""

    def __init__(self, columns: Columns, values: NDArray[np.float64]) -> None:
        own = []
        targets, lower, upper, at_atoms = [], [], [], []
        for place, column in enumerate(values.T):
            standardised = columns.standardised(place, column)
            missing = ~np.isfinite(column)
            clipped = np.where(missing, 0.0, np.clip(standardised, -MAX_DEVIATION, MAX_DEVIATION))
            own.append(np.stack([clipped, np.abs(clipped), missing], axis=1))
            low, high = _interval(np.where(missing, np.nan, standardised))
            targets.append(np.where(missing, 0.0, standardised))
            lower.append(low)
            upper.append(high)
            at_atoms.append(column[:, None] == columns.atoms[place])
        features = torch.from_numpy(np.stack(own)).float()  # (C, n, 3)
        empty = torch.zeros(1, *features.shape[1:])
        index = torch.from_numpy(columns.inputs)
        self.seen = torch.cat([features, empty])[index].permute(0, 2, 1, 3).flatten(2)  # (C, n, F)
        self.target = torch.from_numpy(np.stack(targets)).float()
        self.lower, self.upper = (torch.from_numpy(np.stack(ends)).float() for ends in (lower, upper))
        self.at_atoms = torch.from_numpy(np.stack(at_atoms)).float()  # (C, n, A)
        self.present = torch.from_numpy(np.isfinite(values).T)
        self.has_atom = torch.from_numpy(np.isfinite(columns.atoms)).unsqueeze(1)

    def bits(self, networks: Networks, chosen: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) bits of rows; with a generator features are noisy and intervals of random width, as in training."""
        seen, lower, upper = self.seen[:, chosen], self.lower[:, chosen], self.upper[:, chosen]
        low, high = WIDTHS
        octaves = torch.full(lower.shape, 0.5 * (low + high))
        if generator is not None:
            seen = seen + FEATURE_NOISE * torch.randn(seen.shape, generator=generator) * (seen != 0)
            octaves = low + (high - low) * torch.rand(lower.shape, generator=generator)
        is_free, target = torch.isnan(lower), self.target[:, chosen]
        lower = torch.where(is_free, target - torch.exp2(octaves), lower)
        upper = torch.where(is_free, target + torch.exp2(octaves), upper)
        shares, locations, scales = mixture(networks(seen), self.has_atom)
        inside = torch.sigmoid((upper.unsqueeze(2) - locations) / scales)
        inside = inside - torch.sigmoid((lower.unsqueeze(2) - locations) / scales)
        share = (shares[..., :NUM_COMPONENTS] * inside).sum(dim=2)
        share = share + (shares[..., NUM_COMPONENTS:] * self.at_atoms[:, chosen]).sum(dim=2)
        bits = -torch.log2(share * (1.0 - SMALLEST_SHARE) + SMALLEST_SHARE)
        return torch.where(self.present[:, chosen], bits, 0.0).sum(dim=0)


def mixture(parameters: Tensor, has_atom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of components and atoms (..., K + A), locations and scales (..., K) in standard deviations.

    Parameters (..., P) are those of the codec before they are rounded, in nats, standard deviations and octaves.
    """
    sizes = [NUM_COMPONENTS + NUM_ATOMS, NUM_COMPONENTS, NUM_COMPONENTS]
    logits, locations, octaves = torch.split(parameters, sizes, dim=-1)
    absent = functional.pad(~has_atom, (NUM_COMPONENTS, 0), value=False)
    shares = torch.softmax(logits.masked_fill(absent, -1e4), dim=-1)
    return shares, locations, torch.exp2(octaves.clamp(-9.5, 5.0))


OUTPUT_UNITS = np.array(
    [LOGIT_UNIT] * (NUM_COMPONENTS + NUM_ATOMS) + [EDGE_UNIT] * NUM_COMPONENTS + [OCTAVE] * NUM_COMPONENTS, np.float64
)
"""(P,) steps of the codec's parameters in one of `mixture`'s."""
OUTPUT_OFFSETS = np.array(
    [0.0] * (NUM_COMPONENTS + NUM_ATOMS + NUM_COMPONENTS) + [OCTAVE * np.log2(EDGE_UNIT)] * NUM_COMPONENTS
)
"""(P,) added after that: a scale of 0 octaves is one standard deviation."""


def _start(networks: Networks, rows: _Rows, chosen: Tensor) -> None:
    """Begin with the marginal of every column: components at its quantiles."""
    shares = (torch.arange(NUM_COMPONENTS) + 0.5) / NUM_COMPONENTS
    first = NUM_COMPONENTS + NUM_ATOMS
    with torch.no_grad():
        networks.weights[-1].mul_(0.01)
        bias = networks.biases[-1][:, 0]
        bias[:, first : first + NUM_COMPONENTS] = torch.quantile(rows.target[:, chosen], shares, dim=1).T
        bias[:, first + NUM_COMPONENTS :] = -1.0


def _interval(standardised: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half way to the neighbouring values, the ends open; NaN where a column has too many values for that."""
    distinct, place = np.unique(standardised, return_inverse=True)
    distinct = distinct[np.isfinite(distinct)]
    if not 1 < len(distinct) <= MAX_DISTINCT:
        return np.full(len(standardised), np.nan), np.full(len(standardised), np.nan)
    middles = 0.5 * (distinct[:-1] + distinct[1:])
    place = np.minimum(place, len(distinct) - 1)
    return np.concatenate([[-100.0], middles])[place], np.concatenate([middles, [100.0]])[place]


def _inputs(seen: NDArray[np.float64]) -> NDArray[np.int64]:
    """(C, I) for every column those before it that correlate most with it."""
    num_columns = seen.shape[1]
    spread = seen.std(axis=0)
    unit = (seen - seen.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    strength = np.abs(unit.T @ unit)
    inputs = np.full((num_columns, max(1, min(MAX_INPUTS, num_columns - 1))), -1)
    for column in range(1, num_columns):
        best = np.argsort(-strength[column, :column], kind="stable")[: inputs.shape[1]]
        inputs[column, : len(best)] = np.sort(best)
    return inputs


def _atoms(present: NDArray[np.float64]) -> list[float]:
    """The most frequent values, where they take a share of the rows; NaN fills up."""
    values, counts = np.unique(present, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:NUM_ATOMS]
    found = [float(values[place]) for place in often if counts[place] >= MIN_ATOM_SHARE * len(present)]
    return found + [float("nan")] * (NUM_ATOMS - len(found))


def _skewness(present: NDArray[np.float64]) -> float:
    spread = present.std() if len(present) else 0.0
    return float(np.abs(np.mean(((present - present.mean()) / spread) ** 3))) if spread > 0 else 0.0
