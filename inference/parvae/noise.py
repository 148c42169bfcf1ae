"""Seeded noise that any language can reproduce: Philox4x32-10 and Box-Muller in float64.

numpy does not promise that its own streams stay the same between versions (NEP 19), and they do not exist in
JavaScript or C#. Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parvae.errors import SettingError

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 over `counters` (n, 4); returns (n, 4) random words."""
    x0, x1, x2, x3 = (counters[:, i].astype(np.uint64) for i in range(4))
    key0, key1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _WORD_BITS) ^ x1 ^ np.uint64(key0),
            product1 & _LOW_WORD,
            (product0 >> _WORD_BITS) ^ x3 ^ np.uint64(key1),
            product0 & _LOW_WORD,
        )
        key0, key1 = (key0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (key1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def standard_normal(seed: int, shape: tuple[int, int], *, stream: int = 0, first_row: int = 0) -> NDArray[np.float32]:
    """Independent N(0, 1) numbers of `shape` (n, d), drawn in float64 and rounded to float32.

    Row r depends only on (seed, stream, r + first_row, d): a long draw can be made in chunks. Each counter
    (block, row low, row high, stream) gives four words: (0, 1) and (2, 3) each give a pair of numbers by Box-Muller.

    Raises SettingError when the seed is not a whole number from 0 to 2**64 - 1.
    """
    if not (isinstance(seed, (int, np.integer)) and 0 <= seed < 2**64):
        raise SettingError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
    num_rows, width = shape
    num_blocks = -(-width // 4)
    rows = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    counters = np.empty((num_rows, num_blocks, 4), dtype=np.uint32)
    counters[:, :, 0] = np.arange(num_blocks, dtype=np.uint32)
    counters[:, :, 1] = (rows & _LOW_WORD)[:, None]
    counters[:, :, 2] = (rows >> _WORD_BITS)[:, None]
    counters[:, :, 3] = stream
    words = philox4x32(counters.reshape(-1, 4), (int(seed) & 0xFFFFFFFF, int(seed) >> 32))
    uniform = (words.astype(np.float64) + 0.5) / 2.0**32  # inside (0, 1): the logarithm below is finite
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0::2]))
    angle = 2.0 * np.pi * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return pairs.reshape(num_rows, num_blocks * 4)[:, :width].astype(np.float32)
