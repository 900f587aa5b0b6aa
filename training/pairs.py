"""D3T-GAN: data-dependent transfer from projected training images, and a distilled judge (arXiv 2205.06032).

    accelerate launch training/pairs.py --base ffhq --data pencil --output_dir runs/sketch-pairs

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("pairs")
