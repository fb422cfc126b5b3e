"""Signs of life of long commands, by a clock that the test turns."""

import io
import sys
import threading
import time
import types

from vamf import progress as module
from vamf.progress import Progress
from vamf.training import loop
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.run import Run


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def lines_of(progress, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    return said


def test_a_task_that_reports_nothing_is_still_seen(monkeypatch):
    """A long program: no update for half a minute, lines all the same, and none twice."""
    clock = Clock()
    progress = Progress(every_seconds=5, clock=clock)
    monkeypatch.setattr(progress, "_terminal", False)
    said = lines_of(progress, monkeypatch)
    with progress.task("cats", 100) as task:
        task.at("compiling")
        for second in range(1, 31):
            clock.now = second
            task.beat()
            task.beat()
        assert len(said) == 6
        assert said[0] == "cats: 0/100 steps, 5 s so far, compiling"
        task.update(10, "loss 2")
        clock.now = 36.0
        task.beat()
        assert said[-1] == "cats: 10/100 steps, 0.33 steps/s, 264 s left, loss 2"
        clock.now = 40.0
        task.update(20)
        assert len(said) == 7  # the last line is four seconds old
        task.update(100, "")
        assert said[-1] == "cats: 100/100 steps, 2.5 steps/s, 0 s left"


def test_work_of_unknown_length(monkeypatch):
    clock = Clock()
    progress = Progress(every_seconds=5, clock=clock)
    monkeypatch.setattr(progress, "_terminal", False)
    said = lines_of(progress, monkeypatch)
    with progress.phase("measuring") as task:
        task.beat()
        clock.now = 7.0
        task.beat()
    assert said == ["measuring: 7 s"]


def test_the_thread_beats_and_ends(monkeypatch):
    beats, before = [], threading.active_count()
    with module._repeating(lambda: beats.append(0), 0.1):
        deadline = time.monotonic() + 10
        while len(beats) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(beats) >= 2
    assert threading.active_count() == before


def test_a_terminal_has_a_bar_that_moves_by_itself(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    with progress.task("cats", 100) as task:
        task.update(10)
        task.at("compiling")
        progress.say("a line")
        written = len(sys.stderr.getvalue())
        deadline = time.monotonic() + 10
        while len(sys.stderr.getvalue()) == written and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(sys.stderr.getvalue()) > written  # without any update
        with progress.task("inner", 2) as inner:  # one bar at a time
            inner.update(2)
    for part in ("cats", "10/100", "compiling", "a line", "inner: 2/2", "0:00:0"):
        assert part in sys.stderr.getvalue()


def test_a_notebook_gets_lines(monkeypatch):
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    assert Progress()._every == module.NOTEBOOK
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert Progress()._every == module.PLAIN


def test_quiet_is_quiet(capsys):
    progress = Progress(show=False)
    with progress.task("cats", 1) as task:
        task.update(1)
    progress.say("a line")
    assert capsys.readouterr() == ("", "")


def test_training_says_what_it_is_at(tmp_path, monkeypatch):
    """Compiling first; then where it is, with the last loss, between two lines of the log too."""
    notes = []
    monkeypatch.setattr(module.Task, "at", lambda self, phase: notes.append(phase))
    monkeypatch.setattr(module.Task, "update", lambda self, done, note=None: notes.append((done, note)))
    log = LogConfig(every=2, variance_every=0)
    run = Run.create(TrainConfig("swiss_roll", steps=4, batch_size=8, log=log), tmp_path / "run")
    loop.train(run.ensemble, run.folder, Progress(show=False))
    assert notes[0] == "compiling"
    assert notes[1][0] == 2
    assert notes[1][1].startswith("loss ")
    assert notes[-1][0] == 4
