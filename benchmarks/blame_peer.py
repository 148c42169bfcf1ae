"""Gradient boosting in place of the model: what a classifier for every column, given all others, says of a row.

Letters in shapes: N training rows, n rows to judge, K columns, V values of a column (its categories, or bins of its
numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

NUM_BINS = 24
"""Of numbers: their quantiles, or their values where there are fewer."""
FLOOR = 0.005
"""Share of the marginal in every conditional, so that no probability is 0."""
Matrix = NDArray[np.float64]


class _Column(NamedTuple):
    is_number: bool
    training: Matrix
    """(N,) numbers, or codes of categories."""
    rows: Matrix
    """(n,) likewise."""
    codes: NDArray[np.int64]
    """(N,) the value of each training row, from 0 up to V."""
    row_codes: NDArray[np.int64]
    """(n,) likewise."""
    levels: Matrix
    """(V,) a number for each value."""


def boosted_blame(
    training: pa.Table, rows: pa.Table, *, num_donors: int, max_iter: int
) -> Mapping[str, NDArray[np.float64]]:
    """(n, K) blame by three rules: nats given the others; those less the nats alone; Bayes' rule for this tampering.

    The last is the posterior of "this column was tampered with" when it is known how: with a value of another row, the
    furthest of `num_donors` for numbers, a different one for categories.
    """
    columns = [_column(training[name], rows[name]) for name in training.column_names]
    given = np.stack([column.training for column in columns], axis=1)
    others = np.stack([column.rows for column in columns], axis=1)
    nats, excess, posterior = (np.empty(others.shape) for _ in range(3))
    each = np.arange(len(others))
    for index, column in enumerate(columns):
        alone = np.bincount(column.codes, minlength=len(column.levels)) + 0.5
        alone /= alone.sum()
        conditional = np.tile(alone, (len(others), 1))
        if column.codes.min() < column.codes.max():
            rest = [other for other in range(len(columns)) if other != index]
            categorical = [place for place, other in enumerate(rest) if not columns[other].is_number]
            model = HistGradientBoostingClassifier(
                max_iter=max_iter,
                max_leaf_nodes=15,
                early_stopping=False,
                categorical_features=categorical or None,
                random_state=0,
            ).fit(given[:, rest], column.codes)
            conditional = FLOOR * conditional
            conditional[:, model.classes_] += (1.0 - FLOOR) * model.predict_proba(others[:, rest])
        tampered = conditional @ _moves(column, alone, num_donors)  # (n, V) of the tampered value
        nats[:, index] = -np.log(conditional[each, column.row_codes])
        excess[:, index] = nats[:, index] + np.log(alone[column.row_codes])
        posterior[:, index] = nats[:, index] + np.log(tampered[each, column.row_codes] + 1e-12)
    return {"nats": nats, "nats_less_those_alone": excess, "told_how_rows_were_tampered_with": posterior}


def _column(training: pa.ChunkedArray, rows: pa.ChunkedArray) -> _Column:
    if not (pa.types.is_floating(training.type) or pa.types.is_integer(training.type)):
        texts, others = ([str(value) for value in column.to_pylist()] for column in (training, rows))
        known, codes = np.unique(np.array(texts), return_inverse=True)
        number = {text: index for index, text in enumerate(known.tolist())}
        row_codes = np.array([number.get(text, 0) for text in others])
        return _Column(
            False, codes.astype(float), row_codes.astype(float), codes, row_codes, np.arange(len(known)) * 1.0
        )
    values, others = (np.nan_to_num(column.to_numpy().astype(np.float64)) for column in (training, rows))
    levels = np.unique(values)
    if len(levels) > NUM_BINS:
        edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, NUM_BINS + 1)[1:-1], method="higher"))
    else:
        edges = levels[1:]
    codes, row_codes = np.searchsorted(edges, values, side="right"), np.searchsorted(edges, others, side="right")
    medians = [np.median(values[codes == code]) if (codes == code).any() else 0.0 for code in range(len(edges) + 1)]
    return _Column(True, values, others, codes, row_codes, np.array(medians))


def _moves(column: _Column, alone: Matrix, num_donors: int) -> Matrix:
    """(V, V) probability that tampering turns one value into another."""
    moves = np.tile(alone, (len(alone), 1))
    if column.is_number:
        for value, level in enumerate(column.levels):
            order = np.argsort(np.abs(column.levels - level), kind="stable")
            nearer = np.cumsum(alone[order])
            moves[value, order] = nearer**num_donors - np.concatenate([[0.0], nearer[:-1]]) ** num_donors
        return moves
    np.fill_diagonal(moves, 0.0)
    return moves / moves.sum(axis=1, keepdims=True).clip(1e-12)
