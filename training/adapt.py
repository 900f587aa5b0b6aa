"""Train by any method, one of a plugin too: its name comes first, then the options of its own.

    accelerate launch training/adapt.py colours --base ffhq --data pencil --output_dir runs/colours

To resume, run the same command again. `training/adapt.py NAME --help` lists every weight and setting.
"""

import sys

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.catalogue import METHODS
        from fewshot_gan.training.adapt import main

        if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
            raise SystemExit(f"usage: adapt.py METHOD [options]; methods: {', '.join(METHODS)}")
        main(METHODS.find(sys.argv[1]).name, sys.argv[2:])
