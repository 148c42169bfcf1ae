"""The noise of a training step, row by row: however many processes share the rows, each row meets the same noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 128
"""Rows that are drawn from one seed: few enough for the shares of many processes, for each draws whole blocks."""


def step_noise(*, seed: int, step: int, first_row: int, num_rows: int, num_samples: int, latent_size: int) -> Tensor:
    """(S, B, L) standard normal numbers for B rows of a step, from row `first_row` of its global batch on."""
    first_block, skip = divmod(first_row, BLOCK_ROWS)
    last_block = -(-(first_row + num_rows) // BLOCK_ROWS)
    generator = torch.Generator()
    blocks = []
    for block in range(first_block, last_block):
        generator.manual_seed(seed_of(seed, step, block))
        blocks.append(torch.randn(num_samples, BLOCK_ROWS, latent_size, generator=generator))
    return torch.cat(blocks, dim=1)[:, skip : skip + num_rows]


def seed_of(*numbers: int) -> int:
    """A seed of its own for every sequence of numbers, of the 32 bits that torch's CPU generator takes."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
