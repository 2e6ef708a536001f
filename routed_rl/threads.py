"""Calls in threads that do not keep the process alive. An error, a Ctrl-C and the end of the program thus do not wait until a
server or an environment has answered, as they would with the threads of a `concurrent.futures` pool."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_thread(call: Callable[[], Found], name: str | None = None) -> Future[Found]:
    """Begin `call` in a thread of this name, and return a future of its result or error."""
    future: Future[Found] = Future()

    def run() -> None:
        try:
            found = call()
        except BaseException as error:  # whoever takes the result tells
            future.set_exception(error)
        else:
            future.set_result(found)

    Thread(target=run, daemon=True, name=name).start()
    return future


def in_threads(call: Callable[[Item], Found], items: Sequence[Item], at_once: int) -> list[Found]:
    """Return the results of `call(item)` in the order of `items`; at most `at_once` threads make the calls. After an error no
    further call begins, and the error is raised when the calls in progress have ended. Ctrl-C does not wait for them."""
    found: dict[int, Found] = {}
    waiting, over = iter(enumerate(items)), Event()

    def work() -> None:
        for place, item in waiting:
            if over.is_set():
                return
            try:
                found[place] = call(item)
            except BaseException:
                over.set()
                raise

    threads = [in_thread(work) for _ in range(min(at_once, len(items)))]
    try:
        wait(threads)
        for thread in threads:
            thread.result()
    finally:
        over.set()
    return [found[place] for place in range(len(items))]
