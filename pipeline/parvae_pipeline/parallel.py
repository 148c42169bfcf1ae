"""Work spread over threads, with results in the order of the work: pyarrow and numpy let go of the lock in theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, max_ahead: int = 1
) -> Iterator[Result]:
    """`function` of every item, in order; at most `num_threads` + `max_ahead` results exist before they are taken.

    The first error in the order of the items is raised, and what has not begun by then never does.
    """
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= num_threads + max_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
