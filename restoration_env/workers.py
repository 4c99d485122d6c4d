"""Independent pieces of inference on several cores.

torch splits every operation over its threads and waits, spinning, until all are done. On cores that others use too,
each operation then waits for the slowest thread, and two threads can be many times slower than one. Here every thread
takes whole pieces (a tool on some images, a tile of a photograph), one after the other: nothing waits but the end, and
a thread that is held up takes fewer pieces.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_Waiting = deque[tuple[Callable[[], Any], Future[Any]]]
_FEW = 32  # rows that are done before another thread has woken up


class Kept(Generic[Result]):
    """A function without arguments that keeps its result.

    Attributes:
        result: what it returned when it was called.
    """

    result: Result

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function

    def __call__(self) -> None:
        """Call it."""
        self.result = self._function()


class _Own(threading.local):
    """What each thread knows of itself."""

    threads: int | None = None
    helping = False


_own = _Own()
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has none of the threads


def in_parallel(pieces: Sequence[Callable[[], Result]], *, beside: bool = False) -> Iterator[Result]:
    """Call all pieces, without gradients, on as many threads as torch uses; results in the order of the pieces.

    Other threads begin at once, and the calling one helps while it waits for a result. A single piece, or all of
    them if torch uses one thread, run in the calling thread alone. An error of a piece is raised when its result is
    asked for.

    Args:
        pieces: what to call.
        beside: the caller has work of its own until it asks, so that a single piece goes to another thread too.
    """
    threads = own_threads()
    alone = len(pieces) < (1 if beside else 2)
    if threads == 1 or alone or _own.helping:
        return map(_without_gradients, pieces)
    results = [Future[Result]() for _ in pieces]
    waiting: _Waiting = deque(zip(pieces, results, strict=True))
    others = _pool(threads)
    for _ in range(min(threads - 1, len(pieces))):
        others.submit(_call_all, waiting)
    return _helped(waiting, results)


def _helped(waiting: _Waiting, results: list[Future[Result]]) -> Iterator[Result]:
    try:
        for result in results:
            while waiting and not result.done():
                with pieces_only():
                    _call(waiting)
            yield result.result()
    finally:
        waiting.clear()  # nobody asks for the others


def _call_all(waiting: _Waiting) -> None:
    while waiting:
        _call(waiting)


def _call(waiting: _Waiting) -> None:
    """Call a piece that waits, if another thread does not."""
    try:
        piece, result = waiting.popleft()
    except IndexError:
        return
    _own.helping = True  # what a piece has to do in parallel, it does itself
    try:
        result.set_result(_without_gradients(piece))
    except BaseException as error:  # whoever asks for the result gets it
        result.set_exception(error)
    finally:
        _own.helping = False


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


def by_parts(function: Callable[..., tuple[Tensor, ...]], *batches: Tensor, part: int = 32) -> list[Tensor]:
    """A function of batches (N, ...) that treats every row alone, by parts, many rows shared out among the threads.

    Where gradients are wanted, or on a GPU, in one piece.
    """
    rows = len(batches[0])
    if torch.is_grad_enabled() or batches[0].device.type != "cpu" or rows <= part:
        return list(function(*batches))

    def some(*batches: Tensor) -> list[tuple[Tensor, ...]]:
        return [function(*few) for few in zip(*(batch.split(part) for batch in batches), strict=True)]

    threads = own_threads() if rows > _FEW else 1
    shares = zip(*(batch.chunk(threads) for batch in batches), strict=True)
    made = in_parallel([partial(some, *share) for share in shares])
    return [torch.cat(parts) for parts in zip(*(few for share in made for few in share), strict=True)]


def own_threads() -> int:
    """The threads that `in_parallel` has, the calling one with them."""
    return _own.threads or torch.get_num_threads()


def _without_gradients(piece: Callable[[], Result]) -> Result:
    with torch.no_grad():  # a thread has its own
        return piece()


def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads that help one that has as many as torch uses."""
    with _lock:
        if threads not in _pools:
            everyone = threading.Barrier(threads - 1)
            pool = ThreadPoolExecutor(threads - 1, "restoration-env")
            list(pool.map(partial(_on_one_core, everyone), range(threads - 1)))
            torch.set_num_threads(threads)  # the workers' setting would be that of all threads to come
            _pools[threads] = pool
        return _pools[threads]


def _on_one_core(everyone: threading.Barrier, _: int) -> None:
    torch.get_num_threads()  # a thread takes over the setting of all when it first asks, and only then
    torch.set_num_threads(1)
    everyone.wait()
