"""Memory that runs out in a batch: the batch is halved, and the run goes on."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline_common.errors import UserError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "_alloc_failed")
"""What torch's allocators for CUDA, MPS and CPU, and cuBLAS, write into a RuntimeError."""


@dataclass
class BatchLimit:
    """What a batch may hold.

    Attributes:
        largest: size; None until memory has run out once.
        n_halved: how often it has.
    """

    largest: int | None = None
    n_halved: int = 0


def in_parts(
    batch: Sequence[Item],
    compute: Callable[[Sequence[Item]], Result],
    size: Callable[[Sequence[Item]], int],
    limit: BatchLimit,
    what: str,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """A batch's parts, in order, each with its result: one part, unless memory runs out.

    A part for which it does is halved and so is the limit, which later batches keep to.

    Args:
        batch: what to compute.
        compute: yields the result of a part.
        size: of a part, in the limit's unit.
        limit: changed here.
        what: an item, for the messages.

    Raises:
        UserError: memory runs out for a single item.
    """
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if len(part) == 1 or limit.largest is None or size(part) <= limit.largest:
            result = _unless_out_of_memory(compute, part)
            if result is not None:
                yield part, result
                continue
            if len(part) == 1:
                raise out_of_memory(f"a single {what}")
            limit.largest = size(part) // 2
            limit.n_halved += 1
            _release_memory()
            logger.warning(
                "warning: out of memory in a batch of %d %ss: it is halved, and so are the next ones; the "
                "store's last digits may differ from a store of whole batches, and its manifest says so "
                "(batches_halved)",
                len(part),
                what,
            )
        middle = len(part) // 2
        waiting += [part[middle:], part[:middle]]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the machine or its accelerator has no memory left."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    )


def out_of_memory(where: str) -> UserError:
    """The error to tell where nothing is left to halve."""
    return UserError(
        f"out of memory in {where}; what is complete is kept: add --resume with --device cpu, or start anew "
        "with --dtype bfloat16, a smaller --block-tokens or shorter sentences"
    )


def _unless_out_of_memory(compute: Callable[[Sequence[Item]], Result], part: Sequence[Item]) -> Result | None:
    # A function of its own: with the exception go the frames that hold the failed batch's tensors.
    try:
        return compute(part)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _release_memory() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
