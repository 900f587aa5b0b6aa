"""Learn a look from pairs of its pictures and the faces nearest to them (after JoJoGAN, arXiv 2112.11641).

    accelerate launch training/pairs.py --base ffhq --data toon --output_dir runs/toon

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("pairs")
