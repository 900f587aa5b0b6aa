"""LFS-GAN: teach a base a new look from about ten images (arXiv 2308.11917).

    accelerate launch training/lfs.py --base ffhq --data pencil --output_dir runs/sketch

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("lfs_gan")
