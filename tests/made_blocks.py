"""Blocks of columns made by hand, and numbers to feed them."""

from __future__ import annotations

import torch
from builders import random_raw, schema_of
from torch import Tensor

from parvae.schema import Column
from parvae_pipeline.block import Block
from parvae_pipeline.blocks import BLOCKS

NUM_ROWS = 100
"""Rows that the schemas were measured on."""


def block_of(*columns: Column) -> Block:
    (block,) = schema_of(*columns, num_rows=NUM_ROWS).inputs
    return BLOCKS[block.role](block, NUM_ROWS)


def zeros(block: Block, num_rows: int) -> Tensor:
    return torch.zeros(num_rows, block.num_parameters)


def normal(num_rows: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def numbers(*values: float) -> Tensor:
    return torch.tensor([[value] for value in values], dtype=torch.float64)


def raw_of(columns: tuple[Column, ...], num_rows: int) -> Tensor:
    (raw,) = random_raw(schema_of(*columns, num_rows=NUM_ROWS), num_rows).values()
    return raw
