"""The protocol of the ADBench sets: which rows are trained on, and which are scored.

70/30 stratified split with a seed. Protocol "clean" trains on the normal rows of the 70 %, "contaminated" on all of
them, at most 10,000; at most 20,000 of the 30 % are scored, stratified.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from sklearn.model_selection import train_test_split

MAX_TRAINING_ROWS, MAX_TEST_ROWS = 10_000, 20_000
LABEL = "anomaly"
PROTOCOLS = ("clean", "contaminated")
MIN_BLAME_COLUMNS = 5
"""With fewer columns little is left to tell one from the others."""


def split(table: pa.Table, protocol: str, seed: int) -> tuple[pa.Table, pa.Table]:
    """Training and test rows."""
    labels = table[LABEL].to_numpy()
    training, test = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=labels)
    if protocol == "clean":
        training = training[labels[training] == 0]
    if len(training) > MAX_TRAINING_ROWS:
        training = np.random.default_rng(seed).choice(training, MAX_TRAINING_ROWS, replace=False)
    if len(test) > MAX_TEST_ROWS:
        test, _ = train_test_split(test, train_size=MAX_TEST_ROWS, random_state=seed, stratify=labels[test])
    return table.take(training), table.take(test)
