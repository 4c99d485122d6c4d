"""Independent pieces of inference on several cores.

torch splits every operation over its threads and waits, spinning, until all are done. On cores that others use too,
each operation then waits for the slowest thread, and two threads can be many times slower than one. Here every thread
takes whole pieces (a tool on some images, a tile of a photograph), one after the other: nothing waits but the end, and
a thread that is held up takes fewer pieces.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has none of the threads


def in_parallel(pieces: Sequence[Callable[[], Result]], *, beside: bool = False) -> Iterable[Result]:
    """Call all pieces, without gradients, on as many threads as torch uses; results in the order of the pieces.

    The threads begin at once. A single piece, or all of them if torch uses one thread, run in the calling thread when
    their results are asked for. An error of a piece is raised when its result is asked for.

    Args:
        pieces: what to call.
        beside: the caller has work of its own until it asks, so that a single piece goes to another thread too.
    """
    threads = getattr(_own, "threads", None) or torch.get_num_threads()
    alone = len(pieces) < (1 if beside else 2)
    if threads == 1 or alone or threading.current_thread().name.startswith(_NAME):
        return map(_without_gradients, pieces)
    return _pool(threads).map(_without_gradients, pieces)


@contextmanager
def pieces_only() -> Iterator[None]:
    """Within this, the calling thread computes alone, and `in_parallel` still has all threads.

    A thread that helped with a split operation goes on spinning for milliseconds, on a core that a piece needs.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    _own.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _own.threads = None


def by_parts(function: Callable[..., Tensor], *batches: Tensor, part: int = 8) -> Tensor:
    """A function of batches (N, ...) that treats every row alone, by parts whose rows stay in a core's cache.

    The parts of many rows are computed in parallel; few are done before another thread has woken up. Where gradients
    are wanted, or on a GPU, in one piece.
    """
    rows = len(batches[0])
    if torch.is_grad_enabled() or batches[0].device.type != "cpu" or rows <= part:
        return function(*batches)
    parts = zip(*(batch.split(part) for batch in batches), strict=True)
    pieces = [partial(function, *some) for some in parts]
    return torch.cat([piece() for piece in pieces] if rows <= _FEW else list(in_parallel(pieces)))


_FEW = 64  # rows
_NAME = "restoration-env"
_own = threading.local()


def _without_gradients(piece: Callable[[], Result]) -> Result:
    with torch.no_grad():  # a thread has its own
        return piece()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            everyone = threading.Barrier(threads)
            pool = ThreadPoolExecutor(threads, _NAME)
            list(pool.map(partial(_on_one_core, everyone), range(threads)))
            torch.set_num_threads(threads)  # the workers' setting would be that of all threads to come
            _pools[threads] = pool
        return _pools[threads]


def _on_one_core(everyone: threading.Barrier, _: int) -> None:
    torch.get_num_threads()  # a thread takes over the setting of all when it first asks, and only then
    torch.set_num_threads(1)
    everyone.wait()
