"""Ctrl-C as a request: the first one lets the work in hand finish, the second one stops at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from infnerf_tiles.cli.terminal import Terminal


class StopRequest:
    """Whether the user or the system asked to stop; a context manager that is called for the answer.

    While it is entered, the first SIGINT or SIGTERM is noted and told; the second raises KeyboardInterrupt.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._wanted = threading.Event()
        self._former: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._wanted.is_set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._wanted.is_set():
            raise KeyboardInterrupt
        self._wanted.set()
        self._terminal.say("stopping when the treelets in hand are finished; Ctrl-C again stops at once")
