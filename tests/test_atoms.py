"""Atoms are found where a comparison with each of them finds them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from parvae_pipeline.atoms import AtomTable


def by_comparison(atoms: Tensor, values: Tensor) -> Tensor:
    equal = values.unsqueeze(2) == atoms
    return torch.where(equal.any(dim=2), equal.int().argmax(dim=2), -1)


@pytest.mark.parametrize("num_atoms", [1, 2, 3, 4, 5, 8, 9, 45, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_atoms_are_found_in_any_order_beside_other_values(num_atoms: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_atoms)
    atoms = torch.stack([torch.randperm(1000, generator=generator)[:num_atoms] for _ in range(3)]).to(dtype) / 8.0
    atoms[1, num_atoms // 2 :] = math.nan
    atoms[2, 1:] = math.nan
    values = torch.randint(-50, 1050, (400, 3), generator=generator).to(dtype) / 8.0
    values[:num_atoms] = atoms.T[:num_atoms]
    values[-3:] = torch.tensor([[math.nan], [math.inf], [-math.inf]])
    table = AtomTable(atoms)
    found = table.find(values)
    assert torch.equal(found, by_comparison(atoms, values))
    assert bool((found >= 0).any())
    at_atom = found >= 0
    assert torch.equal(table.at(torch.nan_to_num(atoms), found)[at_atom], values[at_atom])


def test_columns_without_atoms_find_none() -> None:
    table = AtomTable(torch.full((2, 3), math.nan))
    assert torch.equal(table.find(torch.tensor([[0.0, math.nan], [1.0, math.inf]])), torch.full((2, 2), -1))


def test_zeros_of_both_signs_are_one_atom() -> None:
    assert AtomTable(torch.tensor([[1.0, 0.0]])).find(torch.tensor([[-0.0], [0.0]])).tolist() == [[1], [1]]


def test_no_row_finds_nothing() -> None:
    assert AtomTable(torch.tensor([[1.0, 0.0]])).find(torch.zeros(0, 1)).shape == (0, 1)
