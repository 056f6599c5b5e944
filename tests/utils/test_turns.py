"""Threads that take turns: one runs at a time, and all meet where each has a request."""

import os
import signal

import pytest

from sam_runner.utils.turns import Turns


def test_threads_run_one_at_a_time_and_meet_in_their_order():
    events, answered = [], []

    def answer(requests):
        answered.append(requests)
        return [10 * request for request in requests]

    turns = Turns(answer)

    def work(number):
        for round_ in range(2):
            events.append((number, "begins", round_))
            assert turns.meet(number + 3 * round_) == 10 * (number + 3 * round_)
            events.append((number, "goes on", round_))

    assert turns.run([lambda number=number: work(number) for number in range(3)]) == [None] * 3
    assert answered == [[0, 1, 2], [3, 4, 5]]
    between = [((n, "goes on", 0), (n, "begins", 1)) for n in range(3)]
    assert events == [
        *((n, "begins", 0) for n in range(3)),
        *(event for pair in between for event in pair),
        *((n, "goes on", 1) for n in range(3)),
    ]


def test_the_others_meet_without_a_thread_that_has_ended():
    answered = []
    turns = Turns(lambda requests: answered.append(requests) or requests)

    def work(count):
        for number in range(count):
            turns.meet((count, number))
        if count == 1:
            raise ValueError("of this thread only")

    errors = turns.run([lambda: work(2), lambda: work(0), lambda: work(1)])
    assert [type(error) for error in errors] == [type(None), type(None), ValueError]
    assert answered == [[(2, 0), (1, 0)], [(2, 1)]]


def test_an_error_of_the_answer_is_raised_in_every_thread():
    def answer(requests):
        raise MemoryError("for all")

    turns = Turns(answer)
    errors = turns.run([lambda: turns.meet(1), lambda: turns.meet(2), lambda: None])
    assert [str(error) for error in errors] == ["for all", "for all", "None"]


def test_ctrl_c_ends_every_thread_at_its_next_meeting():
    turns, ended = Turns(lambda requests: requests), []

    def work(number):
        try:
            while True:
                turns.meet(number)
                if number == 0:
                    os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            ended.append(number)
            raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.run([lambda: work(0), lambda: work(1)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(ended) == [0, 1]
