"""The page of claims: what decides a verdict, what is stored, and that the page in the repository is the latest."""

import json

import pytest


@pytest.fixture
def claims(script):
    return script("claims")


def comparison(claims, ours, theirs, better="lower", **options):
    numbers = [claims.Number(name, "x.json", (name,)) for name in ("ours", "theirs")]
    return claims.outcome(claims.Comparison("here", "KID", *numbers, better, **options), ours, theirs)


def test_what_holds(claims):
    for ours, theirs, options, wanted in (
        ([0.1], [0.2], {}, "yes"),
        ([0.2], [0.1], {}, "no"),
        ([0.2], [0.1], {"better": "higher"}, "yes"),
        ([0.9], [1.0], {}, "tie"),
        ([1.0], [0.9], {"better": "higher"}, "tie"),
        ([0.8], [1.0], {"margin": 0.4}, "tie"),
        ([0.12], [0.1], {"margin": 0.25, "parity": True}, "yes"),
        ([0.14], [0.1], {"margin": 0.25, "parity": True}, "no"),
        ([0.9], [1.0], {"parity": True}, "yes"),
        ([0.1, 0.3], [0.2, 0.9], {}, "tie"),  # the seeds overlap
        ([0.1, 0.15], [0.2, 0.9], {}, "yes"),
        ([0.9], [0.4], {"better": "near 1"}, "yes"),
        ([2.0], [1.1], {"better": "near 1"}, "no"),
        ([0.5], [2.0], {"better": "near 1"}, "tie"),  # half and twice are equally far
        ([0], [48], {"better": "zero"}, "yes"),
        ([1], [48], {"better": "zero"}, "no"),
        ([48], [48], {"better": "zero"}, "no"),
        ([], [1.0], {}, "not run"),
    ):
        assert comparison(claims, ours, theirs, **options) == wanted, (ours, theirs, options)
    for outcomes, wanted in (
        (["yes", "tie"], "shown"),
        (["yes", "tie", "tie"], "partly shown"),
        (["yes", "no"], "partly shown"),
        (["no", "tie"], "refuted"),
        (["tie", "tie"], "no difference found"),
        (["tie", "tie", "tie", "no"], "not shown"),
        (["tie", "tie", "yes", "no"], "partly shown"),
        (["not run", "yes"], "shown"),
        (["not run"], "not run"),
    ):
        assert claims.verdict(outcomes) == wanted, outcomes
        assert f"*{wanted}*" in f"{claims.__doc__} *not run*" and f"*{wanted}*" in f"{claims.HEAD} *not run*"


def cell(method, seed, kid, judging):
    return {
        "cell": f"{method}/filter-pencil/{seed}",
        "judging": judging,
        "numbers": {"kid_x1e3_ratio": kid, "correlations": {"edge": 1 / 3}},
        "cost": {"seconds": 1.23456789},
        "environment": {"threads": 2},
        "command": ["python", "training/lfs.py", "--output_dir", "/somewhere/bench/cells/x"],
        "training": {"much": "more"},
    }


def test_cells_are_stored_small_and_averaged(claims, tmp_path):
    bench, results = tmp_path / "bench", tmp_path / "results"
    judging = {"num": 200, "seed": 1}
    look = {"look": "filter:pencil", "judging": judging, "rows": {"source": {"kid_x1e3": 123.456789}}}
    files = {"looks/filter-pencil/look.json": look}
    files |= {
        f"cells/lfs/filter-pencil/{seed}/cell.json": cell("lfs", seed, 0.1 + 0.2 * seed, judging) for seed in (0, 1)
    }
    files["cells/old/filter-pencil/0/cell.json"] = cell("old", 0, 9.0, {"num": 3})  # judged otherwise
    for name, content in files.items():
        (bench / name).parent.mkdir(parents=True, exist_ok=True)
        (bench / name).write_text(json.dumps(content), encoding="utf-8")
    (stored,) = claims.collect(bench, results)
    text = stored.read_text(encoding="utf-8")
    content = json.loads(text)
    assert set(content["cells"]) == {"lfs"} and set(content["cells"]["lfs"]) == {"0", "1"}
    assert content["rows"]["source"]["kid_x1e3"] == 123.46 and '"edge": 0.33333' in text
    assert str(tmp_path) not in text and "much" not in text
    wanted = claims.Number("lfs", "bench/filter-pencil.json", ("cells", "lfs", "*", "numbers", "kid_x1e3_ratio"))
    assert claims.numbers(wanted, results) == [0.1, 0.3] and claims.text([0.1, 0.3]) == "0.200 (2 seeds)"
    assert claims.numbers(wanted._replace(path=("cells", "other", "*", "numbers", "kid_x1e3_ratio")), results) == []
    assert claims.numbers(wanted._replace(file="bench/none.json"), results) == []
    look["judging"] = {"num": 500, "seed": 1}
    (bench / "looks/filter-pencil/look.json").write_text(json.dumps(look), encoding="utf-8")
    with pytest.raises(ValueError, match=r"was judged otherwise \(num was 200, now 500\)"):
        claims.collect(bench, results)


def test_the_page_is_the_latest_and_has_no_empty_claim(claims, script):
    claimed = script("claimed")
    made = claims.page(claimed.CLAIMS)
    assert claims.PAGE.read_text(encoding="utf-8") == made, "run python training/claims.py"
    for claim in claimed.CLAIMS:
        assert claim.comparisons and len(claim.claim) < 120
        assert any(claims.numbers(x, claims.RESULTS) for c in claim.comparisons for x in (c.ours, c.theirs))
