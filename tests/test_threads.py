"""Threads that nothing waits for: order, how many at once, and what an error leaves undone."""

from __future__ import annotations

import threading
import time

import pytest

from routed_rl.threads import in_thread, in_threads


def test_results_are_in_the_order_of_the_items_whichever_ends_first_and_no_more_calls_run_at_once_than_allowed():
    lock, running, most = threading.Lock(), 0, 0

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 - 0.002 * item)
        with lock:
            running -= 1
        return item * item

    assert in_threads(call, range(8), 3) == [item * item for item in range(8)] and most == 3
    assert in_threads(call, [], 3) == []


def test_after_an_error_no_further_call_begins_and_the_error_is_raised_when_those_in_progress_have_ended():
    begun, ended = list[int](), list[int]()

    def call(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise LookupError("gone")
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(LookupError, match="gone"):
        in_threads(call, range(8), 2)
    assert begun == [0, 1] and ended == [0]


def test_a_thread_keeps_its_error_for_whoever_takes_the_result():
    assert in_thread(lambda: 3).result(1) == 3
    assert str(in_thread(lambda: {}["x"]).exception(1)) == "'x'"
