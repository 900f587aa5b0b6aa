"""HyperDomainNet: one domain, shown by pictures or named by words, as a domain vector (arXiv 2210.08884).

    accelerate launch training/hyperdomainnet.py --base ffhq --data pencil --output_dir runs/sketch-vector
    accelerate launch training/hyperdomainnet.py --base ffhq --text "anime painting" --output_dir runs/anime

To resume, run the same command again. `--help` lists every weight and setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.adapt import main

        main("hyperdomainnet")
