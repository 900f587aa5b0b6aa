"""Baselines: TransferGAN (arXiv 1805.01677), FreezeD (`--freeze_d 2`, arXiv 2002.10964), scratch (`--scratch`).

    accelerate launch training/finetune.py --base ffhq --data pencil --output_dir runs/sketch-finetune

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("finetune")
