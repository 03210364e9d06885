"""Work in several processes, where a process that dies is a result and not the end.

`concurrent.futures` breaks the whole pool when one process dies (out of memory, a crash inside a
decoder) and can't say over which piece of work; here each process has one piece at a time, so it
can. Processes whose parent was killed end by themselves.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from data_prep.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_TRIES = 2
"""How often an item is given to a process before it counts as deadly."""

_END_SECONDS = 5.0
_STARTED = object()


@dataclass(frozen=True)
class WorkerDied:
    """The process that worked on an item died, each time it was tried.

    Parameters
    ----------
    exit_code
        Of the last one; negative: the number of the signal that ended it.
    """

    exit_code: int


class WorkerError(RuntimeError):
    """The function raised an exception in another process; the message holds its traceback."""


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    number: int = -1
    """Of the item in work."""
    has_started: bool = False

    def give(self, number: int, item: Any) -> None:
        self.number = number
        try:
            self.connection.send(item)
        except (BrokenPipeError, ConnectionResetError):
            # it died before its first item: the answer will be an end of file
            return


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, jobs: int
) -> Iterator[tuple[Item, Result | WorkerDied]]:
    """Apply a function to items in several processes, in whatever order they finish.

    Parameters
    ----------
    work
        A function of a module.
    items
        Sent to a process pickled, one at a time.
    jobs
        Most processes at a time.

    Yields
    ------
    tuple
        An item and its result, or `WorkerDied`.

    Raises
    ------
    WorkerError
        If the function raises; the other processes are ended.
    InputError
        If the processes can't be started.
    """
    waiting = deque((number, 1) for number in range(len(items)))
    tries: dict[int, int] = {}
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                number, tries[number] = waiting.popleft()
                worker = idle.pop() if idle else _start(work)
                busy.append(worker)
                worker.give(number, items[number])
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                answer = _receive(worker)
                if answer is _STARTED:
                    continue
                busy.remove(worker)
                if not isinstance(answer, WorkerDied):
                    idle.append(worker)
                elif tries[worker.number] < MOST_TRIES:
                    waiting.appendleft((worker.number, tries[worker.number] + 1))
                    continue
                yield items[worker.number], answer
    finally:
        for worker in (*busy, *idle):
            _end(worker)


def _start(work: Callable[[Any], Any]) -> _Worker:
    # spawned, not forked: a fork copies locks that other threads hold
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    # else the pipe would stay open when the process dies
    theirs.close()
    return _Worker(process, ours)


def _receive(worker: _Worker) -> Any:
    """Return the result of the item in work, or that the process died."""
    try:
        kind, answer = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(_END_SECONDS)
        worker.connection.close()
        if not worker.has_started:
            raise InputError(
                "A process for a job ended before it could start; call this from a script that "
                "guards its work by 'if __name__ == \"__main__\":', or use a single job."
            ) from None
        return WorkerDied(worker.process.exitcode or 0)
    if kind == "error":
        raise WorkerError(answer)
    if kind == "started":
        worker.has_started = True
        return _STARTED
    return answer


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.terminate()
    worker.process.join(_END_SECONDS)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.process.close()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Answer items until the other end closes: what runs in the other process."""
    # Ctrl-C reaches the whole group of processes: the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send(("started", None))
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        except Exception:  # noqa: BLE001 - an item that can't be unpickled may raise anything
            connection.send(("error", traceback.format_exc()))
            continue
        try:
            answer = "result", work(item)
        except Exception:  # noqa: BLE001 - told to the parent, which raises it
            answer = "error", traceback.format_exc()
        connection.send(answer)


def _end_with_parent() -> None:
    """End this process at once when its parent is gone, even amid an item."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
