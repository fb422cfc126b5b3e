"""Signals that ask a training to stop: the first one politely, the second at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT)
RESUMABLE = 75
"""Exit status of a training that was asked to stop and has saved its state: EX_TEMPFAIL, "try again later"."""


ECHO = 1.0
"""Seconds in which another signal counts as the first one again: `timeout` and schedulers signal a process and then its
group."""


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop has saved its state and stopped."""


class Stop:
    """Whether this process was asked to stop, from `with Stop(say) as stop` on.

    Python runs handlers between two of its instructions, which a chunk of compiled steps can delay for long. Here a
    thread hears of each signal when it comes: a second one, a second or more later, ends the process in the middle of
    anything, with the status that shells know, 128 and the signal's number. Signals that were ignored before still are.
    Outside the main thread nothing is listened to.
    """

    def __init__(self, say: Callable[[str], None], then: str = "the state is saved when this chunk of steps is done"):
        """`then`: what is said to happen now."""
        self.asked = False
        self._say, self._then = say, then
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._ears, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            heeded = [number for number in ASKING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in heeded}
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if not hasattr(self, "_thread"):
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._mouth.close()  # which ends the thread
        self._thread.join()
        self._ears.close()

    def _listen(self) -> None:
        first = 0.0
        while heard := self._ears.recv(1):
            if heard[0] not in self._handlers:
                continue
            if self.asked:
                if time.monotonic() - first < ECHO:
                    continue
                os._exit(128 + heard[0])
            self.asked, first = True, time.monotonic()
            name = signal.Signals(heard[0]).name
            self._say(f"{name}: {self._then}; once more to stop at once")
