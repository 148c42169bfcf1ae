"""Finding values among the atoms of their column: single numbers that take a share of the rows, or come again.

Letters in shapes: B rows, C columns, A atoms of a column (at most), P places of its table, a power of two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class AtomTable(nn.Module):
    """The atoms (C, A) of columns, NaN where a column has fewer.

    Values are found by binary search: a column may have hundreds of atoms, and to compare each value with all of them
    took most of the time of a score.
    """

    table: Tensor
    places: Tensor
    starts: Tensor

    def __init__(self, atoms: Tensor) -> None:
        super().__init__()
        self.num_columns, self.num_atoms = atoms.shape
        self.num_places = 1 << max(0, self.num_atoms - 1).bit_length()
        ordered, places = torch.sort(atoms, dim=1)  # NaN comes last, and no value is above it
        room = (0, self.num_places - self.num_atoms)
        self.register_buffer("table", functional.pad(ordered, room, value=torch.nan).flatten(), persistent=False)
        self.register_buffer("places", functional.pad(places, room).flatten(), persistent=False)
        self.register_buffer("starts", torch.arange(self.num_columns) * self.num_places, persistent=False)

    def find(self, values: Tensor) -> Tensor:
        """(B, C) the place in `atoms` of the atom that a value (B, C) equals; -1 where there is none."""
        found = self.starts.expand(values.shape)
        step = self.num_places // 2
        while step:
            tried = found + step
            found = torch.where(_at(self.table, tried) <= values, tried, found)
            step //= 2
        return torch.where(_at(self.table, found) == values, _at(self.places, found), -1)

    def at(self, numbers: Tensor, places: Tensor) -> Tensor:
        """(B, C) of `numbers` (C, A) those at `places` (B, C); the first of the column where a place is -1."""
        rows = torch.arange(self.num_columns, device=places.device) * self.num_atoms
        return _at(numbers.flatten(), rows + places.clamp(min=0))


def _at(table: Tensor, index: Tensor) -> Tensor:
    return torch.index_select(table, 0, index.flatten()).reshape(index.shape)
