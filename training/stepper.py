"""Takes one training step of a version of this repository whenever a line arrives; bench_speed.py alternates two.

    python training/stepper.py FOLDER OPTIONS OF FOLDER/training/lfs.py …

Writes one JSON line per step to stdout: seconds, losses, and the most memory it has had. It ends with its input.
"""

import json
import resource
import runpy
import sys
import time
from pathlib import Path


def main(folder: str, *options: str) -> None:
    sys.path.insert(0, str(Path(folder) / "src"))
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed
    from fewshot_gan.training.engine import Trainer

    step = Trainer.train_step

    def when_asked(trainer) -> dict:
        if not sys.stdin.readline():
            raise SystemExit
        start = time.perf_counter()
        losses = step(trainer)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": peak}), file=answers, flush=True)
        return losses

    Trainer.train_step = when_asked
    sys.argv = ["lfs.py", *options]
    runpy.run_path(str(Path(folder) / "training" / "lfs.py"), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
