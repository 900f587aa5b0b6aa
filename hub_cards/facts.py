"""Texts of the cards that cannot be read from weights: lineage, limits, citations, commands that make the numbers."""

from dataclasses import dataclass

ORG = "fewshot-gan"  # owner named in the cards in this folder; publish.py --org writes them for another owner
BASE = "ffhq"  # of the looks
WHEEL = "random_face-2021.7.21.1-py3-none-any.whl"
NUM = 200  # pictures of a report, drawn and true
DRAWN_SEED, TRUE_SEED = 800_000, 900_000  # of the reports; used for no training and no choice
JUDGE = "efficientnet-lite2"  # took no part in the training of the published weights


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Texts about one repo.

    Attributes:
        kind: base, adapter, collection, kernels or hypernetwork.
        lineage: origin of weights and data; each entry becomes a list item.
        limits: limits and misuse; each entry becomes a list item.
        papers: keys of `PAPERS`, for the citations.
        truth: commands that make the true pictures; `--out` of the last one is the folder of the pictures.
        true_is: description of these pictures.
        numbers: sentences below the table of numbers, or instead of it.
        results: title of the section of training/RESULTS.md with more numbers.
        caption: caption of the sample grid.
        filter: filter of `fewshot_gan.training.domains` that the grid shows as the true look.
        tags: tags in addition to the usual ones.
        what: entry in the index; empty: that of the kind.
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
    what: str = ""


TEACHER = (
    "The PyPI wheel `random-face` 2021.7.21.1 carries a 1024 px MobileStyleGAN (arXiv 2104.04767) as an OpenVINO "
    "graph. It was distilled from NVIDIA's StyleGAN2-FFHQ (arXiv 1912.04958; NVIDIA Source Code License-NC), which "
    "was trained on the FFHQ photographs (arXiv 1812.04948; the data set is CC BY-NC-SA 4.0, single photographs "
    "have licences of their own). The wheel declares Apache-2.0. Its ancestors do not allow commercial use, so treat "
    "all of it as non-commercial."
)
FROM_BASE = (
    "The base `ffhq` is a MobileStyleGAN that descends from NVIDIA's StyleGAN2-FFHQ (NVIDIA Source Code License-NC) "
    "and the FFHQ photographs (CC BY-NC-SA 4.0); see its card. The adapter works only with this base and is "
    "non-commercial like it."
)
NEEDS = "Needs the fewshot_gan package: `pip install torch==2.13.0 .` in its repository. No GPU."
NO_DATASET = "No data set of the Hub was used, so the card names none."
MISUSE = (
    "The faces are generated. Do not present them as photographs or as real people, and label them as generated where "
    "they could be mistaken for either.",
    "Not for deepfakes, impersonation, fraud, harassment or disinformation. `invert` and the hypernetwork's encoder "
    "take photos: use only photos of people who agreed.",
    "Not for judging people: the model does not identify, recognise or describe real faces, and the likeness after "
    "inversion is weak.",
    "FFHQ consists of photographs from Flickr. Ages, skin tones, faiths, disabilities and regions of the world are not "
    "represented in proportion, and truncation narrows them further. People who are rare in FFHQ are rare here too and "
    "drawn worse. Do not use the pictures as a sample of people, or to train or test face recognition.",
    "Non-commercial use only, see the licence.",
)
OFTEN = "The noise is constant: the same in every picture. Jewellery, hats, hands and text are soft, backgrounds vague."
EVERY_LOOK = (
    "Trained with one seed on one set of ten pictures: how much other seeds differ is not known for this look.",
    OFTEN,
    *MISUSE,
)
ROWS = "the same faces (`pipe(8, seed=0)`, not selected)"
GRID = f"Rows: the base; the true filter; this adapter, which was not trained on these pictures. Columns: {ROWS}."


def made_by(name: str) -> str:
    """Sentence on the training pictures of a filter."""
    return (
        "Trained on ten pictures of the base (seed 7, psi 0.7) under this filter, `python training/make_domain.py "
        f"--base ffhq --style filter:{name} --format webp`. "
    )


def filtered(name: str, limit: str, more: str = "", papers: tuple[str, ...] = ("lfs", "lora")) -> Facts:
    """Facts of an adapter that was trained on a filter.

    Args:
        name: name of the filter.
        limit: limit of this look, listed before those of every look.
        more: further sentence on the training pictures.
        papers: keys of `PAPERS`: of the method and of the kind of adapter.
    """
    options = f"--num {NUM} --seed {TRUE_SEED} --out data/{name}-true"
    return Facts(
        kind="adapter",
        lineage=(FROM_BASE, made_by(name) + more + NO_DATASET),
        truth=(f"OMP_NUM_THREADS=1 python training/make_domain.py --base ffhq --style filter:{name} {options}",),
        true_is=f"the filter `{name}` on pictures of the base from other latents",
        filter=name,
        caption=GRID,
        results="Looks at 1024 px",
        limits=(limit, *EVERY_LOOK),
        papers=(*papers, "projected", "mobilestylegan", "stylegan2", "stylegan"),
        tags=(name, "faces"),
    )


REPOS = {
    "ffhq": Facts(
        kind="base",
        what="generator of 1024 px faces",
        lineage=(
            TEACHER,
            "The generator is this network, converted (`fewshot-gan convert … --half`) and stored in fp16. The graph "
            "lacks only the mean w; the converter computes it from 100,000 mapped latents (seed 123).",
            NO_DATASET,
        ),
        numbers=(
            "There is no report, because it would need the FFHQ photographs, which were not available. Against the "
            "pictures that OpenVINO draws from the graph in fp32, for 16 latents, seed 0 and psi 0.7, the PSNR is 66.2 "
            f"dB on average and 57.5 dB at least: `python training/conversion_error.py --wheel {WHEEL} --base ffhq` in "
            "the repository of fewshot_gan.",
            "Time: 0.16 s a picture on two CPU cores, batch 1; OpenVINO takes 0.17 s there "
            "(`python training/bench_speed.py --only ffhq`).",
        ),
        results="ffhq: the embedded 1024 px base",
        caption="`pipe(8, seed=0)`, not selected, at a quarter of its size.",
        limits=("It has no discriminator. Adapters of the 256 px base are refused.", OFTEN, *MISUSE),
        papers=("mobilestylegan", "stylegan2", "stylegan"),
        tags=("stylegan", "faces"),
    ),
    "ffhq-256": Facts(
        kind="base",
        what="generator of 256 px faces, with heads that know them",
        lineage=(
            TEACHER,
            "The generator is this network (the teacher) cut after its block of 128 px features. A new image head was "
            "fitted in closed form. Then the last blocks and the head were trained on 3,000 teacher pictures, averaged "
            "down to 256 px (900 steps, `training/distill.py`).",
            "`training/source_discriminator.py` trained the heads of the projected discriminator (arXiv 2111.01007) to "
            "tell pictures of this generator from those of disturbed copies. They work on features of "
            "EfficientNet-Lite0, which is not in this repo.",
            NO_DATASET,
        ),
        truth=(
            "pip download --no-deps random-face==2021.7.21.1",
            f"OMP_NUM_THREADS=1 fewshot-gan convert {WHEEL} data/ffhq-fp32",
            f"OMP_NUM_THREADS=1 fewshot-gan generate --base data/ffhq-fp32 --num-images {NUM} --seed {TRUE_SEED} "
            "--batch-size 1 --format png --out data/teacher",
        ),
        true_is="pictures of the 1024 px teacher (`ffhq` in fp32) from other latents, psi 0.7, resized to 256 px by "
        "Lanczos",
        numbers=(
            "These numbers compare the base with its teacher, not with photographs: the FFHQ photographs were not "
            "available. A larger comparison is in `training/RESULTS.md` (`python training/distill.py … --evaluate "
            "1000`): PSNR 29.85 dB to the teacher's picture of the same latent (100 held out), and a Fréchet distance "
            "of 17.3 in EfficientNet-Lite0 features (n = 1,000). Two disjoint sets of the teacher are 12.0 apart.",
        ),
        results="ffhq-256: the embedded 256 px base",
        caption="`pipe(16, seed=0)`, not selected, at half size.",
        limits=(
            "It has no discriminator of its own. Adapt with the projected discriminator, which is the default.",
            OFTEN,
            "Colours are a little weaker than the teacher's, and dark flat backgrounds can show a faint dot pattern.",
            *MISUSE,
        ),
        papers=("mobilestylegan", "stylegan2", "stylegan", "projected"),
        tags=("stylegan", "faces"),
    ),
    "sketch": filtered(
        "pencil",
        limit="Dark hair keeps more grey than under the true filter.",
        more="They are the included example set `pencil`. ",
    ),
    "ink": filtered(
        "ink",
        limit="Fair hair is darker, and backgrounds are lighter, than under the true filter.",
    ),
    "poster": filtered(
        "poster",
        limit="Skin is flat and lines are dark, but hair keeps strands; levels blend where the true filter has steps.",
    ),
    "lorelei": Facts(
        kind="adapter",
        lineage=(
            FROM_BASE,
            "Trained on ten drawings of the DiceBear style Lorelei, a remix of a work by Lisa Wischofsky under "
            "CC0 1.0, "
            "rendered by `python training/make_domain.py --style dicebear:lorelei --resolution 1024`. " + NO_DATASET,
        ),
        truth=(
            f"python training/make_domain.py --style dicebear:lorelei --resolution 1024 --num {NUM} --seed {TRUE_SEED} "
            "--out data/lorelei-true",
        ),
        true_is="other drawings of that style, which share no pose with the faces",
        results="Looks at 1024 px",
        caption=f"Rows: the base; this adapter. Columns: {ROWS}.",
        limits=(
            "It comes near the style but does not reach it, see precision and coverage. Hair, pose, shape of the head "
            "and dark glasses follow the base. Thin-rimmed glasses and beards are lost, and eyes, nose and mouth "
            "hardly vary. The closer the style, the more alike all faces became; this adapter is a compromise.",
            *EVERY_LOOK,
        ),
        papers=("d3t", "lfs", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        tags=("drawing", "faces"),
    ),
    "toon": Facts(
        kind="adapter",
        lineage=(
            FROM_BASE,
            "Trained on the embedded set `toon`: ten heads of Fluent Emoji in 3D (Microsoft, MIT) from the npm package "
            "@lobehub/fluent-emoji-3d 1.1.0, flattened on white. " + NO_DATASET,
        ),
        numbers=(
            "There is no report, because the true pictures, a hundred other heads of the set, are not in the "
            "repository of fewshot_gan. Against them, 100 drawn pictures have 0.16 times the KID of the base's, 0.16 "
            "times by a network that took no part in the training, and follow the lightness of the person's hair "
            "and skin (correlations 0.91 and 0.90).",
        ),
        results="toon: characters whose colours follow the person",
        caption=f"Rows: the base; this adapter. Columns: {ROWS}.",
        limits=(
            "Hair, skin, pose and the outline of the face follow the base. All have the same closed smile; "
            "beards fade, of glasses a dark ring remains, clothes leave a pale lattice, and some cheeks have a spot.",
            *EVERY_LOOK,
        ),
        papers=("d3t", "lora", "gfpgan", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        tags=("cartoon", "faces"),
    ),
    "looks": Facts(
        kind="collection",
        lineage=(
            FROM_BASE,
            "The same files as in the repos of the single looks, whose cards name the training pictures.",
        ),
        limits=("The limits of each look are in its report and on its own card.", *EVERY_LOOK),
        papers=("lfs", "d3t", "lora", "projected", "mobilestylegan", "stylegan2", "stylegan"),
        caption="Rows: the base; {looks}. Columns: the same faces (`pipe(6, seed=0)`, not selected).",
        tags=("faces",),
    ),
    "stylegan-ops": Facts(
        kind="kernels",
        lineage=(
            "Written for fewshot_gan in Triton and plain torch. Contains no weights and no code of other packages.",
        ),
        numbers=(
            "Not measured: these kernels have not run on a GPU yet. Values, first and second derivatives are compared "
            "with plain torch in Triton's interpreter on a CPU: `TRITON_INTERPRET=1 python -m pytest "
            "tests/ops/test_kernels.py` in the repository of fewshot_gan.",
        ),
        results="Speed",
        limits=(
            "No speed is promised, and compiler errors on a GPU are possible. An operation that fails there falls back "
            "to plain torch, and the failure is logged once.",
            "`get_kernel` runs downloaded code: use it only if you trust the publisher, or pin a revision and read the "
            "code.",
        ),
        papers=("stylegan2", "mobilestylegan"),
        tags=("triton",),
    ),
}

# Used only with a trained hypernetwork (build.py and publish.py --hypernetwork FOLDER); none is included.
HYPERNETWORK = Facts(
    kind="hypernetwork",
    lineage=(
        "Its vectors act on the weights of its base, so the terms of the base apply; see the base's card. The table "
        "below names its training data. " + NO_DATASET,
    ),
    numbers=(
        "There is no report for these files: nothing is claimed of how good their looks are. Make one with `adapter = "
        "pipe.adapter_from_image(…)`, `pipe.save_adapter(…)` and `fewshot-gan evaluate`.",
    ),
    results="Looks that a hypernetwork has never seen",
    limits=(
        "One picture or a text replaces ten pictures and a training. In the project's own trial such vectors learned "
        "what all looks have in common, and for some looks they were worse than no adaptation.",
        *EVERY_LOOK[1:],
    ),
    papers=("hyperdomainnet", "mobilestylegan", "stylegan2", "stylegan"),
    tags=("faces",),
)

PAPERS = {
    "lora": """@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang and
    Lu Wang and Weizhu Chen},
  booktitle = {ICLR}, year = {2022}, eprint = {2106.09685}, archivePrefix = {arXiv}
}""",
    "gfpgan": """@inproceedings{wang2021gfpgan,
  title = {Towards Real-World Blind Face Restoration with Generative Facial Prior},
  author = {Xintao Wang and Yu Li and Honglun Zhang and Ying Shan},
  booktitle = {CVPR}, year = {2021}, eprint = {2101.04061}, archivePrefix = {arXiv}
}""",
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
