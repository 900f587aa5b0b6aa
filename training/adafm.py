"""AdaFM transfer: keep low-level filters of generator and discriminator, modulate them, retrain the rest (2002.11810).

    accelerate launch training/adafm.py --base ffhq --data data/pencil --groups G4 --output_dir runs/pencil-adafm

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("adafm")
