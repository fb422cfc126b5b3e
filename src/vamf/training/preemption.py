"""Signals that stop a run: the first one after saving its state, the second immediately."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESUMABLE = 75
"""Exit status of a run that a signal stopped and that saved its state: EX_TEMPFAIL, "try again later"."""


DEBOUNCE = 1.0
"""Seconds in which another signal counts as the first one repeated: `timeout` and schedulers signal a process and then
its group."""


class Preempted(KeyboardInterrupt):
    """A run has saved its state and stopped because of a signal."""


class SignalHandler:
    """Records whether a signal has requested this process to stop, inside `with SignalHandler(say) as signals`.

    Python runs signal handlers between two bytecode instructions, which a chunk of compiled steps can delay for long.
    Here a thread receives each signal immediately: a second one, a second or more later, ends the process at any
    point, with the shell's status 128 + signal number. Signals that were ignored before still are. Outside the main
    thread no signal is handled.
    """

    def __init__(
        self, say: Callable[[str], None], consequence: str = "the state is saved when this chunk of steps is done"
    ):
        """`consequence`: what the message says will happen."""
        self.requested = False
        self._say, self._consequence = say, consequence
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            self._receiver, self._sender = socket.socketpair()
            self._sender.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
            handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if not hasattr(self, "_thread"):
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._sender.close()  # which ends the thread
        self._thread.join()
        self._receiver.close()

    def _listen(self) -> None:
        first = 0.0
        while byte := self._receiver.recv(1):
            if byte[0] not in self._handlers:
                continue
            if self.requested:
                if time.monotonic() - first < DEBOUNCE:
                    continue
                os._exit(128 + byte[0])
            self.requested, first = True, time.monotonic()
            name = signal.Signals(byte[0]).name
            self._say(f"{name}: {self._consequence}; once more to stop at once")
