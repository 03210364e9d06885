"""Work in several processes, where a process that dies is a result and not the end.

A pool of `concurrent.futures` breaks as a whole when one process dies (out of memory, a crash
inside a decoder) and can't say over which piece of work; so here each process is a pool of its own.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from data_prep.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_TRIES = 2
"""How often an item is given to a process before it counts as deadly."""


class WorkerDied(NamedTuple):
    """The process that worked on an item died, each time it was tried, the last by this code.

    A negative code is the number of the signal that ended it.
    """

    exit_code: int


class _Worker:
    """A process that does one piece of work at a time."""

    def __init__(self) -> None:
        before = set(multiprocessing.active_children())
        # spawned, not forked: a fork copies locks that other threads hold
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_watch_parent)
        self.start = self.pool.submit(os.getpid)
        (self.process,) = set(multiprocessing.active_children()) - before

    def give(self, work: Callable[[Any], Result], item: Any) -> Future[Result]:
        try:
            return self.pool.submit(work, item)
        except BrokenProcessPool as error:  # it died while it was idle
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def death(self) -> WorkerDied:
        if self.start.exception() is not None:
            raise InputError(
                "A process for a job ended before it could start; call this from a script that "
                "guards its work by 'if __name__ == \"__main__\":', or use a single job."
            )
        self.pool.shutdown()
        return WorkerDied(self.process.exitcode or 0)


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, jobs: int
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    """Apply a function of a module to items (pickled) in several processes, in any order.

    An exception of the function ends the other processes and is raised here; an InputError says
    that no process can be started.
    """
    waiting = deque((item, 1) for item in items)
    idle = [_Worker() for _ in range(min(jobs, len(items)))]
    busy: dict[Future[Result], tuple[_Worker, Item, int]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, (item, n_tries) = idle.pop(), waiting.popleft()
                busy[worker.give(work, item)] = worker, item, n_tries
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, item, n_tries = busy.pop(future)
                answer: Result | WorkerDied
                try:
                    answer = future.result()
                    idle.append(worker)
                except BrokenProcessPool:
                    answer = worker.death()
                    idle.append(_Worker())
                if isinstance(answer, WorkerDied) and n_tries < MOST_TRIES:
                    waiting.appendleft((item, n_tries + 1))
                else:
                    yield item, answer
    finally:
        workers = [*idle, *(worker for worker, _, _ in busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.pool.shutdown(cancel_futures=True)


def _watch_parent() -> None:
    """End this process at once when its parent is gone; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
