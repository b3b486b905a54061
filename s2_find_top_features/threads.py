"""Several SAEs (layers, bootstraps) in work at a time, with results in order."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], n_workers: int) -> Iterator[Result]:
    """Results of ``work`` in the order of the items, at most ``n_workers`` items ahead of the reader.

    NumPy and SciPy let go of the interpreter's lock in the loops that matter, so threads keep several
    cores busy without copying a single array.
    """
    rest = iter(items)
    with ThreadPoolExecutor(n_workers) as executor:
        waiting: list[Future[Result]] = [executor.submit(work, item) for item in islice(rest, n_workers)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting.extend(executor.submit(work, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
