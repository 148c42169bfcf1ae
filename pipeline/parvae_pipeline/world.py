"""The processes that train one model together: what each of them is, and what they tell one another.

One process alone is a world of its own, and then every method does nothing. Nothing here knows who started the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, distributed

from parvae.errors import Error

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among `size` of them; `rank` 0 writes files and decides what depends on time."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> World:
        """The world that torch.distributed was set up for; alone when it was not."""
        if not distributed.is_available() or not distributed.is_initialized():
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes, the same bits in each."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def from_first(self, value: Any) -> Any:
        """What the first process holds, in every process: plain values and tensors."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def do_first(self, action: Callable[[], Outcome]) -> Outcome:
        """What `action` gives in the first process, in every process; an error of ours is raised in every process."""
        if self.size == 1:
            return action()
        outcome: tuple[Outcome | None, Error | None] = (None, None)
        if self.is_first:
            try:
                outcome = (action(), None)
            except Error as error:
                outcome = (None, error)
        value, failure = self.from_first(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]  # what the first process made

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = World()
