"""Threads that take turns and meet: only one of them runs at a time.

A thread runs until it calls `Turns.meet` with a request or ends; then the next one runs. When every thread that has not
ended has a request, one call answers all of them, and the threads go on in their order. Two threads never run at once,
so code that was written for one thread works in all of them if it keeps no global state across a meeting.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SIGNAL_INTERVAL = 0.1  # seconds until the main thread runs the handler of a signal that another thread received


@dataclass
class _Member:
    """A thread: its state, its request and the answer, and the lock that it waits for."""

    state: Literal["ready", "waiting", "ended"] = "ready"
    request: Any = None
    answer: Any = None
    error: BaseException | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Turns:
    """Runs functions in threads that take turns.

    Args:
        answer: Maps the requests of all threads that have not ended to their answers, in the same order. Its exception
            is raised in each of these threads.
    """

    def __init__(self, answer: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._answer = answer
        self._members: list[_Member] = []
        self._own = threading.local()
        self._all_ended = threading.Semaphore(0)
        self._is_interrupted = False

    def run(self, calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
        """Call each function in a thread of its own; return when all have ended.

        A Ctrl-C that raises KeyboardInterrupt in this thread raises it in the others at their next meeting.

        Args:
            calls: The functions, at least one.

        Returns:
            The exception that ended each function, or None.

        Raises:
            KeyboardInterrupt: See above; all functions have ended then.
        """
        self._members = [_Member() for _ in calls]
        errors: list[BaseException | None] = [None] * len(calls)

        def work(number: int) -> None:
            member = self._own.member = self._members[number]
            member.turn.acquire()
            try:
                calls[number]()
            except BaseException as error:
                errors[number] = error
            member.state = "ended"
            self._pass_on()

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(calls))]
        for thread in threads:
            thread.start()
        self._members[0].turn.release()
        have_ended = False
        while not have_ended:
            try:
                have_ended = self._all_ended.acquire(timeout=SIGNAL_INTERVAL)
            except KeyboardInterrupt:
                self._is_interrupted = True
        for thread in threads:
            thread.join()
        if self._is_interrupted:
            raise KeyboardInterrupt
        return errors

    def meet(self, request: Any) -> Any:
        """Return the answer to a request, when all other threads have one or have ended; called by the threads."""
        member: _Member = self._own.member
        member.request, member.state = request, "waiting"
        self._pass_on()
        member.turn.acquire()
        answer, error = member.answer, member.error
        member.request = member.answer = member.error = None
        if self._is_interrupted:
            raise KeyboardInterrupt
        if error is not None:
            raise error
        return answer

    def _pass_on(self) -> None:
        """Let the next thread run; the thread that has its turn calls it before it waits or ends."""
        waiting = [member for member in self._members if member.state == "waiting"]
        if not any(member.state == "ready" for member in self._members):
            self._answer_all(waiting)
        following = next((member for member in self._members if member.state == "ready"), None)
        (self._all_ended if following is None else following.turn).release()

    def _answer_all(self, waiting: Sequence[_Member]) -> None:
        try:
            answers = self._answer([member.request for member in waiting]) if waiting else []
            for member, answer in zip(waiting, answers, strict=True):
                member.answer = answer
        except BaseException as error:
            for member in waiting:
                member.error = error
        for member in waiting:
            member.state = "ready"
