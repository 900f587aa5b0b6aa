"""training/README.md: a section for every script, and no option that its script does not have."""

import argparse
import re
from pathlib import Path

import pytest

from fewshot_gan.training import command_line, hypernetwork, look_hypernetwork, lottery

TRAINING = Path(__file__).parents[2] / "training"
TEXT = (TRAINING / "README.md").read_text(encoding="utf-8")
SECTIONS = {title: body for title, body in re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", TEXT, re.MULTILINE)}
SCRIPTS = sorted(path.name for path in TRAINING.glob("*.py"))
METHODS = {"lfs": "lfs_gan", "d3t": "d3t", "pairs": "pairs", "cdc": "cdc", "adafm": "adafm", "finetune": "finetune"}
METHODS["hyperdomainnet"] = "hyperdomainnet"
PARSERS = {"hypernetwork": hypernetwork, "look_hypernetwork": look_hypernetwork, "lottery": lottery}
WITHOUT = ("adapt.py", "bench_looks.py", "bench_report.py", "claimed.py", "measured.py")  # options
MORE = {"lifelong.py": "lfs.py", "stepper.py": "lfs.py", "curves.py": "lfs.py"}  # whose options they speak of too
MORE["adapt.py"] = "lfs.py"  # of any method


class Caught(Exception):
    pass


@pytest.fixture
def options(script, monkeypatch):
    """`options("lfs.py")`: all that its own parser takes."""

    def catch(parser, *args, **kwargs):
        raise Caught(parser)

    def known(name: str) -> set[str]:
        stem = name.removesuffix(".py")
        if stem in METHODS:
            parsers = [command_line.parser(METHODS[stem])]
        elif stem in PARSERS:
            parsers = [PARSERS[stem].parser()]
        elif name in WITHOUT or stem == "stepper":
            parsers = []
        else:
            with monkeypatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", catch)
                patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
                with pytest.raises(Caught) as caught:
                    script(stem).main([])
            parsers = [caught.value.args[0]]
        own = {option for parser in parsers for option in parser._option_string_actions}
        return own | (known(MORE[name]) if name in MORE else set())

    return known


def test_every_script_has_a_section():
    assert sorted(title for title in SECTIONS if title.endswith(".py")) == SCRIPTS
    for name in SCRIPTS:
        body = SECTIONS[name]
        if "A module, not a script" not in body:
            assert f"training/{name}" in body or name == "bench.py", f"{name}: no command"
            assert "Takes" in body or name in ("stepper.py", "measured.py"), f"{name}: neither time nor memory"
            assert "rites" in body, f"{name}: what does it write?"
    assert "@" not in TEXT


def test_every_option_is_one_of_its_script(options):
    takes = {name: options(name) for name in SCRIPTS}
    assert {"--report_to", "--num_threads", "--sample_steps"} <= takes["lfs.py"] & takes["lottery.py"]
    anywhere = set().union(*takes.values())
    for title, body in SECTIONS.items():
        commands = re.findall(r"training/(\w+\.py)((?:.*\\\n)*.*)", body)
        for name, line in commands:
            given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", line.split("#")[0]))
            if name == "benchmark.py" and "--profile" in given:
                name = "bench.py"
            if name != "measured.py":
                assert given <= takes[name], f"{title}: {name} has no {', '.join(given - takes[name])}"
        text = re.sub(r"^    .*$", "", body, flags=re.MULTILINE)
        spoken = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - {"--logdir", "--method"}  # of other programs
        known = takes.get(title, anywhere) | ({"--profile"} if title == "benchmark.py" else set())
        assert spoken <= known, f"{title} has no {', '.join(sorted(spoken - known))}"
