"""HyperDomainNet: a network that predicts the domain vector of any picture or text (arXiv 2210.08884, §4).

    accelerate launch training/hypernetwork.py --base ffhq --data DOMAINS --output_dir runs/hyper
    accelerate launch training/hypernetwork.py --base ffhq --texts domains.txt --output_dir runs/hyper

DOMAINS has one folder of images per domain; a line of the list is 'Target' or 'Target - Source'. To resume, run the
same command again.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.hypernetwork import main

        main()
