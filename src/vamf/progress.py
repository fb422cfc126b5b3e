"""Progress of a command: a progress bar on a terminal, plain lines otherwise."""

import contextlib
import sys
import time
from collections.abc import Iterator


class Progress:
    """Progress with rate and time left: a live bar on a terminal, a plain line every few seconds otherwise."""

    def __init__(self, show: bool = True, every_seconds: float = 10.0):
        self._show = show
        self._terminal = show and sys.stderr.isatty()
        self._every = every_seconds
        self._bar = None

    def say(self, line: str) -> None:
        """Print one line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._show:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int, done: int = 0, unit: str = "steps") -> Iterator["Task"]:
        """A task of `total` units."""
        if not self._terminal:
            yield Task(self, title, total, done, unit, self._every if self._show else float("inf"))
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as self._bar:
            number = self._bar.add_task(title, total=total, completed=done, rate="", note="")
            bar = self._bar

            def show(done: int, rate: float, note: str):
                bar.update(number, completed=done, rate=f"{_format_rate(rate)} {unit}/s", note=note)

            yield Task(self, title, total, done, unit, 0.0, show)
        self._bar = None


class Task:
    """One task and its rate."""

    def __init__(self, progress: Progress, title: str, total: int, done: int, unit: str, every: float, show=None):
        self._progress, self._title, self._total, self._unit = progress, title, total, unit
        self._every, self._show = every, show
        self._start, self._first, self._last_line = time.perf_counter(), done, time.perf_counter()

    def update(self, done: int, note: str = "") -> None:
        """Report the number of units done."""
        current = time.perf_counter()
        rate = (done - self._first) / max(current - self._start, 1e-9)
        if self._show is not None:
            self._show(done, rate, note)
        elif current - self._last_line >= self._every or done >= self._total:
            self._last_line = current
            seconds_left = (self._total - done) / rate if rate else float("inf")
            text = f"{self._title}: {done:,}/{self._total:,} {self._unit}, {_format_rate(rate)} {self._unit}/s"
            if self._every != float("inf"):
                self._progress.say(f"{text}, {seconds_left:,.0f} s left" + (f", {note}" if note else ""))


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
