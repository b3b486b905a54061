"""The processes that torchrun started: waiting for one another, and merging what they measured."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s1_compute_all_features.work_plan import Measurements


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, number of processes): those of torchrun where it started us, else (0, 1)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank(), world
    finally:
        torch.distributed.destroy_process_group()


def wait_for_all(world: int) -> None:
    """Go on when every process has come here."""
    if world > 1:
        import torch.distributed

        torch.distributed.barrier()


def shared(value: Any, world: int) -> list[Any]:
    """What each process gives, in the order of their ranks; goes on when every process has come here."""
    import torch.distributed

    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def gathered(measured: Measurements, world: int) -> Measurements:
    """What all processes measured, merged."""
    if world == 1:
        return measured
    # Sent as plain values: the objects themselves hold factories.
    values = (dict(measured.seconds), dict(measured.active), measured.explained, measured.n_halved)
    merged = Measurements()
    for seconds, active, explained, n_halved in shared(values, world):
        part = Measurements(n_halved=n_halved)
        part.seconds.update(seconds)
        part.active.update(active)
        part.explained.update(explained)
        merged.merge(part)
    return merged
