"""How fast vamf trains the small networks of the 2-D studies, as ratios taken in one run on an idle machine.

    python benchmarks/toys.py [--torch PYTHON] [--out FILE] [--quick] [--force]

What is compared is measured alternately (A, B, A, B, ...), each kind in a process of its own; a rate is the best of
several turns, its spread the distance of the median from the best; torch counts with the fastest of its variants
(the derivative on all rows or split, all cores or one thread). The same training in PyTorch is in
`torch_reference.py`; before any clock starts, both sides take a few steps from the same parameters on the same batch
and have to agree. With other load on the machine nothing is reported (status 2).

Arithmetic of a step of one model, in products of the layers only. With B rows, O = B (1 - equal_fraction) of them with
r < t, m multiply-adds a row in the network, m1 in its first layer and F features of each time in width W:

    primal forward 2 m B + tangent 2 (m - F W) O + proxy's forward 2 m O (beta > 0) + backward 2 (2 m - m1) B

(the tangent of r is zero, and the first layer needs no gradient by its input).
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = [(128, 256), (256, 1024), (512, 2048)]
PAPER = {"width": 128, "batch": 256}
DEPTH, FEATURES, DIM, EQUAL = 3, 32, 2, 0.25
EQUALS = (0, 0.25, 0.5, 0.75)
MEMBERS = 33
BUSY, SPREAD, TOLERANCE = 0.15, 0.25, 1e-5
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Refusal(Exception):
    """Why there is nothing to report."""


def flops(width, batch, beta=0.5, equal=EQUAL):
    """Floating-point operations of one step of one model; the formula is at the top of this file."""
    first = (DIM + 2 * FEATURES) * width
    m = first + (DEPTH - 1) * width**2 + DIM * width
    moving = batch - round(equal * batch)
    forward = m * batch + (m - FEATURES * width) * moving + (m * moving if beta else 0)
    return 2 * (forward + (2 * m - first) * batch)


def training(width, batch, members=1, chunk=None, **options):
    """The request for a run of vamf, advanced in chunks of 4 to 256 steps, 1e11 operations if it can be."""
    chunk = chunk or 2 ** max(2, min(8, round(math.log2(1e11 / flops(width, batch) / members))))
    return {"kind": "training", "width": width, "batch": batch, "ensemble": members > 1, "chunk": chunk, **options}


class Worker:
    """One process that measures, or several that measure at the same time."""

    def __init__(self, command, copies=1):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen([str(part) for part in command], **pipes) for _ in range(copies)]

    def send(self, **request):
        """Hand over a request; replies come in the order of the requests."""
        with contextlib.suppress(BrokenPipeError):
            for process in self.processes:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()

    def receive(self):
        """The reply of each process."""
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            raise Refusal("a measuring process has ended; its own message is above")
        return [json.loads(line) for line in lines]

    def ask(self, **request):
        """The replies to a request."""
        self.send(**request)
        return self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()


class Bench:
    """Measurements by name, and who makes them."""

    def __init__(self, torch, quick, say):
        self.torch, self.quick, self.say = torch, quick, say
        self.results, self.differences = {}, {}

    def vamf(self, spread=False):
        """A worker with one device, or one on every core."""
        return Worker([sys.executable, HERE / "vamf_worker.py", *(["--spread"] if spread else [])])

    def pytorch(self, threads=CORES, copies=1):
        """A worker with all cores, or several with one thread each."""
        return Worker([self.torch, HERE / "torch_reference.py", "--threads", threads], copies)

    def measure(self, title, items, repeats=None):
        """Measure items {name: (worker, request)} in turn, several times over."""
        repeats = repeats or (2 if self.quick else 5)
        rates = {name: [] for name in items}
        self.say(f"{title}: compiling")
        for who, request in items.values():
            who.send(**request, seconds=0)
        for who, _ in items.values():
            who.receive()
        for turn in range(repeats):
            self.say(f"{title}: turn {turn + 1} of {repeats}")
            for name, (who, request) in items.items():
                replies = who.ask(**request, seconds=0.3 if self.quick else 0.6)
                rates[name].append(sum(reply["rate"] for reply in replies))
        for name, values in rates.items():
            best, median = max(values), statistics.median(values)
            spread = 1 - median / best
            self.results[name] = {"best": best, "median": median, "spread": spread, "repeats": repeats}

    def seconds(self, name, start, request):
        """Seconds from process start to the end of the first step, nothing compiled before; the best of several."""
        self.say(f"first step: {name}")
        taken, repeats = [], 1 if self.quick else 2
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as empty:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
                before = time.perf_counter()
                with start() as who:
                    who.ask(**request)
                    taken.append(time.perf_counter() - before)
        best, median = min(taken), statistics.median(taken)
        self.results[name] = {"best": best, "median": median, "spread": 1 - best / median, "repeats": repeats}

    def peaks(self):
        """Matrix products, to compare with."""
        n = 2048 if self.quick else 4096
        with self.vamf() as who:
            kinds = ("jax", "numpy")
            items = {f"peak {kind}": (who, {"kind": "peak", "library": kind, "n": n}) for kind in kinds}
            self.measure("matrix product", items)

    def size(self, width, batch, expected):
        """One network size: single, ensemble and the PyTorch variants; these have to reproduce `expected` first."""
        job = {"width": width, "batch": batch}
        paper = job == PAPER
        with contextlib.ExitStack() as stack:
            single, spread = stack.enter_context(self.vamf()), stack.enter_context(self.vamf(spread=True))
            items = {
                "vamf single": (single, training(**job)),
                "vamf single beta 0": (single, training(**job, beta=0.0)),
                "vamf ensemble": (spread, training(**job, members=MEMBERS)),
            }
            for mode in ("eager", "compile"):
                for split in (True,) if self.quick else (False, True):
                    who = stack.enter_context(self.pytorch())
                    options = {"split": split, "compiled": mode == "compile"}
                    request = {"kind": "rate", **job, "beta": 0.5, "equal": round(EQUAL * batch), **options}
                    name = f"torch {mode}{' split' * split}"
                    if paper:
                        self.verify(name, who, expected, options)
                    items[name] = (who, request)
                    if paper and split and not self.quick:
                        zero = who if mode == "eager" else stack.enter_context(self.pytorch())
                        items[f"{name} beta 0"] = (zero, request | {"beta": 0})
                        for label, copies in (("one thread", 1), ("one process a core", CORES)):
                            who = stack.enter_context(self.pytorch(threads=1, copies=copies))
                            items[f"{name}, {label}"] = (who, request)
            title = f"{width} x {batch}"
            self.measure(title, {f"{title} {name}": item for name, item in items.items()})

    def verify(self, name, who, expected, options):
        """Refuse a PyTorch variant whose losses are not vamf's."""
        self.say(f"is it the same computation? {name}")
        [reply] = who.ask(kind="follow", **expected["start"], **options)
        error = max(abs(a / b - 1) for a, b in zip(reply["losses"], expected["losses"], strict=True))
        if not error <= TOLERANCE:
            raise Refusal(f"{name} is not vamf's training: its losses differ by {error:.1e}")
        self.differences[name] = error

    def layouts(self):
        """Strategies and devices of the ensemble at the paper's size."""
        with self.vamf() as one, self.vamf(spread=True) as each:
            items = {
                f"ensemble {strategy}, {devices}": (who, training(**PAPER, members=MEMBERS, strategy=strategy))
                for strategy in ("loop", "vmap")
                for devices, who in (("one device", one), ("a device a core", each))
            }
            self.measure("layout of a ensemble", items)

    def parts(self):
        """What is saved on the diagonal, and what random numbers and metrics cost."""
        with self.vamf() as who:
            items = {}
            for equal in (EQUAL,) if self.quick else EQUALS:
                items[f"equal {equal}"] = (who, training(**PAPER, equal=equal))
                items[f"equal {equal}, all rows"] = (who, training(**PAPER, equal=equal, variant="all rows"))
            for variant in ("drawn before", "no metrics"):
                items[f"single, {variant}"] = (who, training(**PAPER, variant=variant))
            self.measure("parts of a step", items)

    def runs(self):
        """The same steps with everything a run does around them."""
        with self.vamf() as who:
            items = {
                "chunks of 500": (who, training(**PAPER, chunk=500)),
                "run": (who, {"kind": "run", "variance": False}),
                "run, gradient variance": (who, {"kind": "run", "variance": True}),
            }
            self.measure("a run", items, repeats=2)

    def starts(self):
        """From the start of the process to the first step."""
        rate = {"kind": "rate", **PAPER, "beta": 0.5, "equal": 64, "split": True, "seconds": 0}
        self.seconds("start vamf", self.vamf, training(**PAPER, chunk=1))
        if not self.quick:
            self.seconds("start torch eager", self.pytorch, rate | {"compiled": False})
            self.seconds("start torch compile", self.pytorch, rate | {"compiled": True})


def ratios(results):
    """The comparisons, by name, as far as both sides were measured."""
    best = {name: result["best"] for name, result in results.items()}
    of = {}

    def compare(label, one, other, fraction=False):
        if one in best and other in best:
            of[label] = 1 - best[one] / best[other] if fraction else best[one] / best[other]

    for width, batch in SIZES:
        at = f"{width} x {batch}"
        for name in ("single", "ensemble"):
            best[f"{at} GFLOP/s, {name}"] = best.get(f"{at} vamf {name}", 0) * 1e-9 * flops(width, batch)
            if best[f"{at} GFLOP/s, {name}"]:
                of[f"{at}: GFLOP/s, {name}"] = best[f"{at} GFLOP/s, {name}"]
                compare(f"{at}: share of the peak, {name}", f"{at} GFLOP/s, {name}", "peak jax")
        compare(f"{at}: ensemble per model / single", f"{at} vamf ensemble", f"{at} vamf single")
        for mode in ("eager", "compile"):
            kinds = [f"{at} torch {mode}{kind}" for kind in ("", " split", " split, one thread")]
            torch = max(kinds, key=lambda name: best.get(name, 0))
            compare(f"{at}: single / torch {mode}", f"{at} vamf single", torch)
            compare(f"{at}: ensemble per model / torch {mode}", f"{at} vamf ensemble", torch)
            compare(
                f"{at}: single / torch {mode}, beta 0", f"{at} vamf single beta 0", f"{at} torch {mode} split beta 0"
            )
            farm = f"torch {mode} split, one process a core"
            compare(f"{at}: ensemble / {farm}", f"{at} vamf ensemble", f"{at} {farm}")
    default = "ensemble loop, a device a core"
    for name in [name for name in best if name.startswith("ensemble ") and name != default]:
        compare(f"{name} / {default}", name, default)
    for equal in EQUALS:
        compare(f"equal {equal}: skipping / all rows", f"equal {equal}", f"equal {equal}, all rows")
        if f"equal {equal}" in best:
            of[f"equal {equal}: the same by the arithmetic"] = flops(**PAPER, equal=0) / flops(**PAPER, equal=equal)
    compare("share of a step: random numbers", f"equal {EQUAL}", "single, drawn before", fraction=True)
    compare("share of a step: metrics", f"equal {EQUAL}", "single, no metrics", fraction=True)
    compare("share of a run: log, samples, checkpoints", "run", "chunks of 500", fraction=True)
    compare("share of a run: these and gradient variance", "run, gradient variance", "chunks of 500", fraction=True)
    for mode in ("eager", "compile"):
        compare(f"first step: torch {mode} / vamf", f"start torch {mode}", "start vamf")
    return of


def cpu_seconds():
    """Busy and total seconds of all processors since boot."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy / os.sysconf("SC_CLK_TCK"), (busy + idle + waiting) / os.sysconf("SC_CLK_TCK")


def benchmark_seconds():
    """Processor seconds of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Load:
    """Load of other programs on the processors, as a fraction of all of them."""

    def __init__(self):
        if not Path("/proc/stat").exists():
            raise Refusal("this system has no /proc/stat, so other load cannot be seen")
        self.start, self.start_of_benchmark = cpu_seconds(), benchmark_seconds()

    def fraction(self):
        """The fraction since the start, without the benchmark's work."""
        busy, total = (now - then for now, then in zip(cpu_seconds(), self.start, strict=True))
        return max(0.0, busy - (benchmark_seconds() - self.start_of_benchmark)) / total

    @classmethod
    def now(cls, seconds=2):
        """The fraction over the next seconds."""
        load = cls()
        time.sleep(seconds)
        return load.fraction()


def complain(reasons, force, reason):
    """Stop for a reason, or note it."""
    if not force:
        raise Refusal(f"{reason}: nothing is reported; wait until the machine is idle, or --force")
    reasons.append(reason)


def processor():
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def run(args, console):
    """Measure everything; the report as plain data."""
    reasons, loads, begun = [], {}, time.perf_counter()

    def check_load(when, fraction):
        loads[when] = fraction
        if fraction > BUSY:
            complain(reasons, args.force, f"other programs kept the processors {fraction:.0%} busy {when}")

    check_load("before", Load.now())
    load = Load()
    with console.status("starting") as status, tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        bench = Bench(args.torch, args.quick, status.update)
        with bench.pytorch() as who:
            try:
                torch_version = who.ask(kind="version")[0]["version"]
            except Refusal:
                raise Refusal("no torch to compare with") from None
        with bench.vamf() as who:
            [expected] = who.ask(kind="trajectory", **PAPER)
        bench.peaks()
        for width, batch in SIZES[:1] if args.quick else SIZES:
            bench.size(width, batch, expected)
        bench.layouts()
        bench.parts()
        if not args.quick:
            bench.runs()
        bench.starts()
    check_load("during the measurements", load.fraction())
    check_load("after", Load.now())
    wide = [name for name, result in bench.results.items() if result["spread"] > SPREAD]
    if wide:
        complain(reasons, args.force, f"measurements spread by more than {SPREAD:.0%}: {', '.join(wide)}")
    versions = {name: importlib.metadata.version(name) for name in ("vamf", "jax", "jaxlib", "numpy")}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": args.quick,
        "contended": reasons,
        "other_load": loads,
        "seconds": time.perf_counter() - begun,
        "hardware": {"processor": processor(), "cores": CORES, "system": platform.platform()},
        "versions": {"python": platform.python_version(), **versions, "torch": torch_version},
        "units": {"peak": "GFLOP/s", "start": "s", "otherwise": "model steps per second"},
        "gflop_of_a_step": {f"{width} x {batch}": 1e-9 * flops(width, batch) for width, batch in SIZES},
        "differences_of_losses": bench.differences,
        "measurements": bench.results,
        "ratios": ratios(bench.results),
    }


def show(report, console):
    """Two tables."""
    from rich.table import Table

    rates = Table("measurement", title="best of several turns; model steps/s where nothing else is said")
    ratio = Table("comparison", title="ratios and shares")
    for table, columns in ((rates, ("best", "spread")), (ratio, ("value",))):
        for column in columns:
            table.add_column(column, justify="right")
    units = report["units"]
    for name, result in report["measurements"].items():
        unit = units.get(name.split()[0], "")
        rates.add_row(name, f"{result['best']:,.4g} {unit}" if result["best"] < 1e4 else f"{result['best']:,.0f}",
                      f"{result['spread']:.0%}")  # fmt: skip
    for name, value in report["ratios"].items():
        ratio.add_row(name, f"{value:.0%}" if "share" in name else f"{value:,.3g}")
    console.print(rates, ratio)
    worst = max(report["differences_of_losses"].values())
    console.print(f"same computation: the losses of all torch variants are within {worst:.1e} of vamf's")
    for name, value in report["ratios"].items():
        if name.endswith("ensemble per model / single") and value < 1:
            console.print(f"[red]slower[/red]: {name} is {value:.3g}, below 1", highlight=False)
    for reason in report["contended"]:
        console.print(f"[red]contended[/red]: {reason}", highlight=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", metavar="PYTHON", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "toys-cpu.json", help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="the paper's size only, few turns")
    parser.add_argument("--force", action="store_true", help="report in spite of other load, marked as contended")
    args = parser.parse_args()
    from rich.console import Console

    console = Console()
    try:
        report = run(args, console)
    except Refusal as refusal:
        print(f"toys.py: {refusal}", file=sys.stderr)
        sys.exit(2)
    show(report, console)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draft = args.out.with_suffix(".tmp")
    draft.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(draft, args.out)
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
