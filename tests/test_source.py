"""Rules that hold for every source file, told by their syntax trees."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for part in ("src", "training", "hub_cards", "docs") for path in sorted((ROOT / part).rglob("*.py"))]
NOT_FILES = {
    "Image",
    "tarfile",
    "zipfile",
    "archive",
    "self.archive",
    "av",
    "os",
    "Build",
}  # their `open` reads no text


def text_opened_without_encoding(tree: ast.AST) -> list[int]:
    """Lines of `read_text`, `write_text` and text-mode `open` calls that name no encoding."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        strings = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        named = any(k.arg in ("encoding", None) for k in call.keywords) or "utf-8" in strings
        binary = any(isinstance(s, str) and "b" in s and set(s) <= set("rwaxb+") for s in strings)
        if name in ("read_text", "write_text") and not named:
            lines.append(call.lineno)
        if name == "open" and owner not in NOT_FILES and not named and not binary:
            lines.append(call.lineno)
    return lines


def test_rule_sees_what_it_forbids():
    wrong = "p.read_text()\np.write_text(x)\nopen(p)\np.open('w')\n"
    right = "p.read_text('utf-8')\np.write_text(x, encoding='utf-8')\nopen(p, 'rb')\nImage.open(p)\np.open('ab')\n"
    assert text_opened_without_encoding(ast.parse(wrong)) == [1, 2, 3, 4]
    assert text_opened_without_encoding(ast.parse(right)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_utf8(path):
    assert text_opened_without_encoding(ast.parse(path.read_text("utf-8"))) == []


def imported_tests(tree: ast.AST) -> list[str]:
    """Names of modules `test_…` that a file imports, also in strings that are Python."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += re.findall(r"^\s*(?:from|import) ([\w.]+)", node.value, re.MULTILINE)
    return [name for name in names if name.rpartition(".")[2].startswith("test_") or name == "conftest"]


def test_rule_sees_tests_that_import_tests():
    wrong = "import test_a\nfrom convert.test_b import x\nfrom conftest import y\n"
    wrong += "code = '''\nfrom test_c import *\n'''\n"
    assert imported_tests(ast.parse(wrong)) == ["test_a", "convert.test_b", "conftest", "test_c"]
    assert imported_tests(ast.parse("from helpers.networks import tiny_mobile\nimport testing\n")) == []


def test_no_test_imports_another():
    """What two test files share stands in `helpers`."""
    found = {path.name: imported_tests(ast.parse(path.read_text("utf-8"))) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: names for name, names in found.items() if names and name != "test_source.py"} == {}
