"""A program for `test_processes.py`: trains a run as one of several processes, or continues it.

python process_worker.py FOLDER [--resume]
"""

import sys
from pathlib import Path

from vamf import distributed

distributed.start()

from vamf.networks import MLPConfig  # noqa: E402
from vamf.progress import Progress  # noqa: E402
from vamf.training.config import LogConfig, TrainConfig  # noqa: E402
from vamf.training.run import Run  # noqa: E402
from vamf.training.sharding import MeshConfig  # noqa: E402

CONFIG = TrainConfig(
    data="swiss_roll",
    steps=12,
    batch_size=32,
    checkpoint_every=4,
    log=LogConfig(every=2, variance_every=0),
    network=MLPConfig(width=64, depth=1),
    mesh=MeshConfig(data=0),
)


def main(folder: str, *options: str) -> None:
    run = Run.open(Path(folder)) if "--resume" in options else Run.create(CONFIG, Path(folder))
    run.train(Progress(show=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
