"""A network that predicts a look from one picture, trained on families of photo filters (after HyperDomainNet, §4).

    accelerate launch training/look_hypernetwork.py --base ffhq --output_dir runs/looks
    accelerate launch training/look_hypernetwork.py --families tone duotone posterise --output_dir runs/looks

It needs no data: the base draws the faces, and filters are their looks. To resume, run the same command again.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.look_hypernetwork import main

        main()
