"""Lottery tickets: train a GAN on limited data, prune, rewind, train again, with or without AdvAug (arXiv 2103.00397).

    python training/make_data.py --faces 3000 --resolution 32 --out data/faces
    accelerate launch training/lottery.py --data data/faces --num 1000 --rounds 5 --output_dir runs/ticket
    accelerate launch training/lottery.py --data data/faces --num 1000 --ticket runs/ticket/round-05 \
        --adv_steps 1 --diffaugment color,translation,cutout --output_dir runs/ticket-advaug

Round 0 is dense; round K trains what K prunings left, from the first weights again, and is a base of its own with its
`ticket/`. To resume, run the same command again. `--help` lists every setting.
"""

from fewshot_gan.utils.errors import script

if __name__ == "__main__":
    with script():
        from fewshot_gan.training.lottery import main

        main()
