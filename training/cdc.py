"""Cross-domain correspondence: what differs in the source stays different (arXiv 2104.06820).

    accelerate launch training/cdc.py --base ffhq --data pencil --output_dir runs/sketch-cdc

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("cdc")
