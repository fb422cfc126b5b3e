"""What holds for every test: vamf's signatures are enforced at every call, and a program is compiled but once."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# Before anything imports JAX; processes that tests start inherit it. Compilation is most of the suite's time: quick
# code will do, and what one test compiled serves all others, in the next run too.
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"
FLAGS = "--xla_backend_optimization_level=0"
# Former emitters compile in half the time, but fuse a chunk's steps by its length: not for tests that compare bits
# across programs (`bits`). Later versions of JAX have no others.
FORMER = "--xla_cpu_use_fusion_emitters=false"
UNSPLIT = "--xla_cpu_parallel_codegen_split_count=1"  # a program in parts for several threads costs more on one
QUICK = bool(os.environ.get("VAMF_QUICK_COMPILATION")) and version("jax").startswith("0.10.")
os.environ.setdefault("XLA_FLAGS", f"{FLAGS} {FORMER} {UNSPLIT}" if QUICK else FLAGS)
os.environ.setdefault("NPROC", "1")  # the processes of the suite are as many as the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from beartype import BeartypeConf, beartype  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# An int is welcome wherever a float is asked for, as everywhere in Python.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Has to run before the first import of what it checks.
install_import_hook("vamf", "conftest.typechecker")


def pytest_pyfunc_call(pyfuncitem):
    """A test of bits, where others are compiled otherwise, runs in a process of its own, compiled as for users."""
    if pyfuncitem.get_closest_marker("bits") is None or FORMER not in os.environ["XLA_FLAGS"]:
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VAMF_QUICK"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = subprocess.run(
        command, env=environment | {"XLA_FLAGS": FLAGS}, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return True


DEAR = ("adaptive", "cli", "reflow", "data_argument", "ddpm", "diagnosis", "ema_weights", "export", "finetuning",
        "generator", "inputs", "prediction", "processes", "published", "samples", "studies", "study_adaptive",
        "study_dit", "study_finetune", "study_methods", "study_mixtures", "sweep", "trained_estimates")  # fmt: skip
"""Files whose fixtures train: each is one process's, so that they are made once."""


def pytest_xdist_make_scheduler(config, log):
    """Tests go to whichever process is free, quick ones with all their parameters; the dear files whole, and first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.split("::")[0]
            if path.removesuffix(".py").rsplit("test_", 1)[-1] in DEAR:
                return path
            return nodeid if config.option.markexpr == "slow" else nodeid.split("[")[0]

    return Scheduling(config, log)
