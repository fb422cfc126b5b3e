"""Progress of a command: a live bar on a terminal, plain lines in a notebook and elsewhere.

There is a sign of life every few seconds also where a task reports nothing itself, while a program is compiled or a
long one runs: a thread prints what was reported last, and for how long nothing has changed.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

NOTEBOOK, PLAIN = 5.0, 10.0
"""Seconds between lines."""


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class Progress:
    """Progress with rate and time left: a live bar on a terminal, a plain line every few seconds otherwise."""

    def __init__(
        self,
        show: bool = True,
        every_seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """
        Args:
            every_seconds: between plain lines; by default 5 in a notebook and 10 elsewhere.
            clock: the time in seconds, for tests.
        """
        self._show = show
        self._terminal = show and sys.stderr.isatty()
        self._every = (NOTEBOOK if in_notebook() else PLAIN) if every_seconds is None else every_seconds
        self._clock = clock
        self._bar = None

    def say(self, line: str) -> None:
        """Print one line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._show:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None, done: int = 0, unit: str = "steps") -> Iterator["Task"]:
        """A task of `total` units; None where nobody knows how many."""
        task = Task(self.say, title, total, done, unit, self._every, self._clock)
        if not self._show:
            yield task.muted()
        elif self._terminal and self._bar is None:
            with self._live(task):
                yield task
        else:
            with _repeating(task.beat, self._every):
                yield task

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator["Task"]:
        """Work whose length nobody knows."""
        with self.task(title, None) as task:
            yield task

    @contextlib.contextmanager
    def _live(self, task: "Task") -> Iterator[None]:
        """A bar that follows a task; a thread of its own redraws it, with the time that has passed."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        counted = task.total is not None
        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        columns += [BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}")] if counted else []
        columns += [TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
        columns += [TimeRemainingColumn()] if counted else []
        try:
            with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as self._bar:
                number = self._bar.add_task(task.title, total=task.total, completed=task.done, rate="", note="")
                bar = self._bar
                task.follow(lambda: bar.update(number, completed=task.done, rate=task.rate_text(), note=task.note))
                yield
        finally:
            self._bar = None


class Task:
    """One task and its rate."""

    def __init__(
        self,
        say: Callable[[str], None],
        title: str,
        total: int | None,
        done: int,
        unit: str,
        every: float,
        clock: Callable[[], float],
    ):
        self.title, self.total, self.done = title, total, done
        self._note = self._phase = ""
        self._say, self._unit, self._every, self._clock = say, unit, every, clock
        self._start = self._last_line = self._last_change = clock()
        self._first, self._follow = done, None
        self._lock = threading.Lock()

    def muted(self) -> "Task":
        """The same, which prints nothing."""
        self._every, self._say = float("inf"), lambda line: None
        return self

    def follow(self, show: Callable[[], None]) -> None:
        """Call a function at each update, in place of printing lines."""
        self._follow = show

    def at(self, phase: str) -> None:
        """Say what it is at, until the next update."""
        with self._lock:
            self._phase = phase
            if self._follow is not None:
                self._follow()

    @property
    def note(self) -> str:
        """What is said beside the number of units done."""
        return ", ".join(filter(None, (self._phase, self._note)))

    def update(self, done: int, note: str | None = None) -> None:
        """Report the number of units done.

        Args:
            note: what to say beside it; by default what was said last.
        """
        with self._lock:
            self.done, self._last_change = done, self._clock()
            self._phase, self._note = "", self._note if note is None else note
            if self._follow is not None:
                self._follow()
            elif self._last_change - self._last_line >= self._every or (self.total and done >= self.total):
                self._print()

    def beat(self) -> None:
        """Print a line if none was printed for long."""
        with self._lock:
            if self._clock() - self._last_line >= self._every:
                self._print()

    def rate_text(self) -> str:
        """Units a second so far; nothing before the first is done."""
        rate = self._rate()
        return f"{_format_rate(rate)} {self._unit}/s" if rate else ""

    def _rate(self) -> float:
        return (self.done - self._first) / max(self._last_change - self._start, 1e-9)

    def _print(self) -> None:
        now, rate = self._clock(), self._rate()
        self._last_line = now
        if self.total is None:
            self._say(f"{self.title}: {now - self._start:,.0f} s" + (f", {self.note}" if self.note else ""))
            return
        words = [f"{self.title}: {self.done:,}/{self.total:,} {self._unit}"]
        if rate:
            left = max((self.total - self.done) / rate - (now - self._last_change), 0.0)
            words += [self.rate_text(), f"{left:,.0f} s left"]
        else:
            words.append(f"{now - self._start:,.0f} s so far")
        self._say(", ".join([*words, *filter(None, [self.note])]))


@contextlib.contextmanager
def _repeating(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function again and again in a thread, until the block is left; not where every update is printed."""
    if seconds <= 0:
        yield
        return
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(max(seconds / 4, 0.05)):
            function()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
