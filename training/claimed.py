"""The claims of the five papers' abstracts, as comparisons of stored numbers, and what is to be said about each."""

from claims import Claim, Comparison, Number

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


def cell(method: str, look: str, *path: str) -> Number:
    return Number(method, f"bench/{look.replace(':', '-')}.json", ("cells", method, "*", *path))


def against(
    ours: str, theirs: str, looks: tuple[str, ...], quantities=(KID, UNSEEN, DIVERSITY), factor: float = 1.0
) -> tuple[Comparison, ...]:
    """Two methods of the bench on some looks, by some of its numbers."""
    return tuple(
        Comparison(
            look.partition(":")[2],
            QUANTITIES[key][0],
            *(cell(method, look, "numbers", key) for method in (ours, theirs)),
            QUANTITIES[key][1],
            factor,
        )
        for look in looks
        for key in quantities
    )


BOTH = ("filter:pencil", "dicebear:lorelei")
THREE = ("filter:pencil", "filter:poster", "dicebear:lorelei")

CLAIMS = [
    Claim(
        D3T,
        "Transfer from the source gives better pictures than TransferGAN.",
        against("d3t-left", "transfergan-full", LOOKS, (KID, UNSEEN)),
    ),
    Claim(D3T, "It also gives more diverse ones.", against("d3t-left", "transfergan-full", LOOKS, (DIVERSITY,))),
    Claim(
        D3T,
        "The transfer between generators is one of the two reasons.",
        against("d3t-left", "d3t-distillation-left", BOTH),
    ),
    Claim(
        D3T,
        "The distillation of the discriminator is the other.",
        against("d3t-left", "d3t-transfer-left", BOTH),
    ),
    Claim(
        D3T,
        "Both together are better than the same training without them.",
        against("d3t-left", "signals-left", BOTH),
    ),
    Claim(
        HDN,
        "Domain modulation, 3,456 numbers here, is nearly as good as training all 9 million weights.",
        against("hyperdomainnet-domain_vector", "hdn-full", THREE, (KID, UNSEEN), factor=1.25),
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
        against("lfs-left", "cdc-full", LOOKS, (KID, UNSEEN), factor=1.0),
    ),
    Claim(LFS, "It keeps more diversity than CDC.", against("lfs-left", "cdc-full", LOOKS, (DIVERSITY,))),
    Claim(
        LFS,
        "Cluster-wise mode seeking makes the pictures more diverse.",
        against("lfs-seeking-left", "lfs-left", BOTH, (DIVERSITY,)),
    ),
]
