"""The claims of the five papers' abstracts, as comparisons of stored numbers, and what is to be said about each."""

from claims import MARGIN, Claim, Comparison, Number

D3T = "D3T-GAN (arXiv 2205.06032)"
HDN = "HyperDomainNet (arXiv 2210.08884)"
LFS = "LFS-GAN (arXiv 2308.11917)"
ADAFM = "AdaFM (arXiv 2002.11810)"
MEMORY = "GAN Memory (arXiv 2006.07543)"
LOTTERY = "Lottery tickets (arXiv 2103.00397)"

NEAR, FAR = (
    ("filter:pencil", "filter:ink", "filter:poster"),
    (
        "dicebear:lorelei",
        "dicebear:notionists",
        "dicebear:avataaars",
    ),
)
LOOKS = (*NEAR, *FAR)
KID, UNSEEN, DIVERSITY = "kid_x1e3_ratio", "unseen_x1e3_ratio", "balanced_intra_cluster_distance_ratio"
QUANTITIES = {KID: ("KID", "lower"), UNSEEN: ("unseen", "lower"), DIVERSITY: ("diversity", "near 1")}


TABLES = "printed/tables.json"


def cell(method: str, look: str, key: str) -> Number:
    return Number(method, f"bench/{look.replace(':', '-')}.json", ("cells", method, "*", "numbers", key))


def printed(method: str, look: str, key: str) -> Number:
    """Of the earlier bench, with 500 judged and 1,000 true pictures, and two seeds of two looks."""
    return Number(method, TABLES, ("bench_500", "looks", look, method, "*", key))


def against(
    ours: str,
    theirs: str,
    looks: tuple[str, ...],
    quantities=(KID, UNSEEN, DIVERSITY),
    source=cell,
    margin: float = MARGIN,
    parity: bool = False,
) -> tuple[Comparison, ...]:
    """Two methods of a bench on some looks, by some of its numbers."""
    return tuple(
        Comparison(
            look.partition(":")[2],
            QUANTITIES[key][0],
            *(source(method, look, key) for method in (ours, theirs)),
            QUANTITIES[key][1],
            margin,
            parity,
        )
        for look in looks
        for key in quantities
    )


SNGAN_MARGIN = 0.4  # two seeds of a dense SNGAN differ by 19 % (KID) and 36 %, of a random ticket by 32 and 44 %
JUDGES = ("kid", "unseen")


def adafm(images: str, step: str, judge: str) -> Comparison:
    """AdaFM against fine-tuning at 64 px."""
    kind = "adafm_g3" if images == "100" else "adafm_g2"
    paths = (("adafm_64px", images, name, step, judge) for name in (kind, "whole"))
    numbers = (Number(name, TABLES, path) for name, path in zip(("AdaFM", "fine-tuning"), paths, strict=True))
    return Comparison(f"{images} pictures, step {step}", judge, *numbers)


def lottery(ours: str, theirs: str, judge: str, parity: bool = False) -> Comparison:
    """Two kinds of SNGAN, each the mean of its seeds."""
    numbers = (
        Number(name.replace("_", " "), TABLES, ("sngan_1000_faces", name, "*", judge)) for name in (ours, theirs)
    )
    return Comparison("SNGAN, 1,000 faces", judge, *numbers, margin=SNGAN_MARGIN, parity=parity)


FAMILIES = ("emboss-1000000", "hatch-1000000", "solarise-1000000")  # a look of each that was held out
BOTH = ("filter:pencil", "dicebear:lorelei")
CHOSEN = (
    "AdaFM trains two groups of blocks with 1,000 pictures and three with 100; the two groups were chosen on seed 0 by "
    "the numbers of this table."
)
THREE = ("filter:pencil", "filter:poster", "dicebear:lorelei")

CLAIMS = [
    Claim(
        D3T,
        "Transfer from the source gives better pictures than TransferGAN.",
        against("d3t-left", "transfergan-full", LOOKS, (KID, UNSEEN), printed),
        "On flat drawings of other shapes, notionists and avataaars, both erase the faces.",
    ),
    Claim(
        D3T,
        "It also gives more diverse ones.",
        against("d3t-left", "transfergan-full", LOOKS, (DIVERSITY,), printed),
        "More diversity than the truth has is no merit: TransferGAN's lorelei (1.92) are silhouettes.",
    ),
    Claim(
        D3T,
        "The transfer between generators is one of the two reasons.",
        against("d3t-left", "d3t-distillation-left", BOTH),
        "On lorelei it keeps people apart (diversity 1.64 of the truth's, which is too much; .68 without), and costs "
        "distance by the unseen judge.",
    ),
    Claim(
        D3T,
        "The distillation of the discriminator is the other.",
        against("d3t-left", "d3t-transfer-left", BOTH),
        "In 100 steps the discriminator's heads on frozen features have little time to forget what they know.",
    ),
    Claim(
        D3T,
        "Both together are better than the same training without them.",
        against("d3t-left", "signals-left", BOTH),
    ),
    Claim(
        HDN,
        "Domain modulation, 3,456 numbers here, is nearly as good as training all 9 million weights.",
        against("hyperdomainnet-domain_vector", "hdn-full", THREE, (KID, UNSEEN), margin=0.25, parity=True),
        "On lorelei the two are alike because neither draws its lines after 100 steps: nearly all the distance to the "
        "drawings is left.",
    ),
    Claim(
        HDN,
        "The in-domain angle consistency loss makes the pictures more diverse.",
        tuple(
            c
            for weight in ("0.5", "1.5")
            for c in against(
                f"hdn-angle{weight.lstrip('0')}-domain_vector", "hyperdomainnet-domain_vector", THREE, (DIVERSITY,)
            )
        ),
    ),
    Claim(
        LFS,
        "LeFT learns a look with one hundredth of the weights at the quality of training all of them.",
        against("lfs-left", "cdc-full", LOOKS, (KID, UNSEEN), parity=True),
        "For lorelei, a line drawing, LFS-GAN still draws photographs after 100 steps at its usual settings. Its "
        "losses are the reason, not LeFT: with those of D3T-GAN it comes to KID 0.50, see claim 1.",
    ),
    Claim(LFS, "It keeps more diversity than CDC.", against("lfs-left", "cdc-full", LOOKS, (DIVERSITY,))),
    Claim(
        LFS,
        "Cluster-wise mode seeking makes the pictures more diverse.",
        against("lfs-seeking-left", "lfs-left", BOTH, (DIVERSITY,)),
    ),
    Claim(
        LFS,
        "Learning further looks changes no earlier one.",
        (
            Comparison(
                "five looks in turn",
                "pictures that changed in any bit, and all",
                Number("lfs-left", TABLES, ("lifelong", "changed")),
                Number("pictures", TABLES, ("lifelong", "pictures")),
                "zero",
            ),
        ),
        "This follows from the parametrisation: the base is never written to. GAN Memory and every other adapter here "
        "has the same property.",
    ),
    Claim(
        ADAFM,
        "AdaFM gets near the target in fewer steps than fine-tuning.",
        tuple(adafm(images, step, judge) for images in ("100", "1000") for step in ("500", "1000") for judge in JUDGES),
        CHOSEN,
    ),
    Claim(
        ADAFM,
        "It is better at the end of the training.",
        tuple(adafm(images, "1500", judge) for images in ("100", "1000") for judge in JUDGES),
        "On 100 pictures it is; on 1,000 pictures fine-tuning has the lower KID after 1,500 steps, as every weight may "
        f"change. {CHOSEN} On a base of 256 px with 600 pictures a run, AdaFM was not better in nine settings.",
    ),
    Claim(
        LOTTERY,
        "A ticket draws as well as the dense network or better.",
        tuple(lottery("ticket", "dense", judge, parity=True) for judge in JUDGES),
        "Two seeds of one network differ by more than ticket and dense network do. Two thirds of the weights are zero.",
    ),
    Claim(
        LOTTERY,
        "It owes this to its first weights: the same mask with others is worse.",
        tuple(lottery("ticket", "random_ticket", judge) for judge in JUDGES),
        "One of the two random tickets is as good as the ticket, the other far worse: two seeds cannot tell.",
    ),
    Claim(
        LOTTERY,
        "Adversarial augmentation of features (AdvAug) improves it further.",
        tuple(lottery("ticket_advaug", "ticket", judge) for judge in JUDGES),
        "One seed, 1,000 steps on 1,000 faces, where nothing overfits yet. The number is worse, by less than seeds "
        "differ. The paper trains 50,000 steps.",
    ),
    Claim(
        HDN,
        "A hypernetwork predicts looks that it has never seen.",
        tuple(
            Comparison(
                look,
                judge,
                Number("predicted from one picture", TABLES, (table, "held_out", look, judge)),
                Number("no adaptation", TABLES, ("hypernetwork", "source", judge)),
            )
            for table, looks in (
                ("look_hypernetwork", ("pencil", "ink", "poster", "sepia", *FAMILIES)),
                ("hypernetwork", ("lorelei", "notionists", "avataaars")),
            )
            for look in looks
            for judge in JUDGES
        ),
        "Filters: by a network that learned from 1,800 looks of eleven families. Drawings: by one that learned from 23 "
        "looks. Both move towards strong looks that they have not seen, stay far from what ten pictures teach (a "
        "vector then has KID ratios of .18 on pencil, .33 on ink and .49 on poster), and make mild looks worse.",
    ),
]
