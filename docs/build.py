"""Build the documentation as a folder of HTML: README.md, other Markdown pages, and every public module.

    python docs/build.py build/docs  # needs '.[docs]'

The build is strict. It fails with a list of all problems, and leaves the folder as it was, on any of these: a warning,
a link or picture without a target, a docstring that quotes a name which the package does not have, a module without a
docstring.
"""

import argparse
import importlib
import pkgutil
import re
import shutil
import sys
import tempfile
import types
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc.doc
import pdoc.render

ROOT = Path(__file__).resolve().parents[1]
FILES = ("html", "j2", "jpg", "json", "jsonl", "md", "png", "py")  # `cards.py` is a file, not an attribute
PAGES = {  # Markdown file → name of its page
    "CONTRIBUTING.md": "CONTRIBUTING",
    "CHANGELOG.md": "CHANGELOG",
    "docs/extend.md": "docs.extend",
    "training/README.md": "training.README",
    "training/RESULTS.md": "training.RESULTS",
    "training/CLAIMS.md": "training.CLAIMS",
}


def public_modules(package: types.ModuleType) -> list[str]:
    """Return the names of a package and its modules, except those with a leading underscore."""
    names = [package.__name__]
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            names.append(module.name)
    return sorted(names)


def relinked(text: str, page: str) -> str:
    """Return Markdown in which links to the files of PAGES and to README.md lead to the HTML pages.

    Args:
        text: Markdown.
        page: path of the page in the repository, e.g. "training/README.md".
    """
    for file, module in PAGES.items():
        text = text.replace(f"]({file})", f"]({module.replace('.', '/')}.html)")
    up = "../" * page.count("/")
    for file, module in PAGES.items():
        text = text.replace(f"](../{file})", f"]({up}{module.replace('.', '/')}.html)")
    return text.replace("](../README.md)", f"]({up}fewshot_gan.html)")


def documented(package: types.ModuleType) -> dict[str, pdoc.doc.Module]:
    """Return module name → what pdoc renders for it."""
    modules = {name: importlib.import_module(name) for name in public_modules(package)}
    front = [(ROOT / "README.md").read_text(encoding="utf-8").partition("\n")[2], "## Modules\n"]
    for name, module in modules.items():
        if module is not package:
            front.append(f"- [{name}]({name.replace('.', '/')}.html): {(module.__doc__ or '').partition(chr(10))[0]}")
    package.__doc__ = relinked("\n".join(front), "fewshot_gan")
    vars(package)["__all__"] = []  # every public name is on the page of its module
    for file, name in PAGES.items():
        modules[name] = types.ModuleType(name, relinked((ROOT / file).read_text(encoding="utf-8"), file))
        vars(modules[name])["__all__"] = []
    rendered = {name: pdoc.doc.Module(module) for name, module in modules.items()}
    for kind in (member for module in rendered.values() for member in module.own_members):
        call = kind.members.get("__call__") if isinstance(kind, pdoc.doc.Class) else None
        if call and call.taken_from[0].startswith(package.__name__):
            call.docstring += "\n\n@public"  # without this pdoc hides names with underscores
    return rendered


def build(out: Path) -> list[str]:
    """Render all pages into the empty folder `out`.

    Returns:
        Problems, one sentence each.
    """
    import fewshot_gan

    problems = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # warnings of other libraries while they are imported
        modules = documented(fewshot_gan)
        warnings.simplefilter("always")
        pdoc.render.configure(
            docformat="google", show_source=False, footer_text=f"fewshot_gan {fewshot_gan.__version__}"
        )
        for name, module in modules.items():
            if not module.docstring.strip():
                problems.append(f"{name} has no docstring")
            page = out / f"{name.replace('.', '/')}.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(unlinked(pdoc.render.html_module(module, modules), module), encoding="utf-8")
        (out / "index.html").write_text(
            '<meta http-equiv="refresh" content="0; url=fewshot_gan.html">\n', encoding="utf-8"
        )
        (out / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")
    shutil.copytree(ROOT / "training" / "images", out / "training" / "images")
    problems += [f"{Path(w.filename).name}: {w.message}" for w in caught]
    pages = {path.relative_to(out).as_posix(): Page(path) for path in sorted(out.rglob("*.html"))}
    return problems + dead_links(out, pages) + unknown_names(pages, modules)


def unlinked(html: str, module: pdoc.doc.Module) -> str:
    """Return the page without pdoc's links to members that have no anchor: private members and those of torch."""
    shown = set(re.findall(r'\bid="([^"]+)"', html))

    def plain(match):
        path = match[1].split(".")
        unshown = path[0].startswith("_") or _attribute(module.obj, path) is not None
        return match[2] if match[1] not in shown and unshown else match[0]

    html = re.sub(r'<a href="#([\w.]+)">(.*?)</a>', plain, html)
    return re.sub(r'(?<=[)\]}])<a href="[^"]*">(?:\w+\.)*(\w+)</a>', r".\1", html)  # f().images is not a module


def _attribute(owner, path: list[str]):
    """Return the attribute at `path` of `owner`, or the name of one that only instances have; None: there is none."""
    for part in path:
        declared = {name for kind in getattr(owner, "__mro__", ()) for name in getattr(kind, "__annotations__", {})}
        owner = getattr(owner, part, part if part in declared else None)
    return owner


class Page(HTMLParser):
    """One HTML page.

    Attributes:
        targets: values of href and src.
        anchors: values of id.
        names: names that docstrings quote without a link.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.targets, self.anchors, self.names = [], set(), []
        self._open: list[tuple[str, str]] = []  # open tags with their classes
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        self.targets += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        if tag not in ("br", "hr", "img", "input", "link", "meta"):
            self._open.append((tag, attributes.get("class") or ""))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self._open]
        if tags[-1:] == ["code"] and not {"a", "pre"} & set(tags) and any("docstring" in c for _, c in self._open):
            self.names.append(data)


def dead_links(out: Path, pages: dict[str, Page]) -> list[str]:
    """Return a sentence for each link or picture without a target; addresses of other hosts are not checked."""
    problems = []
    for name, page in pages.items():
        for target in dict.fromkeys(page.targets):
            url = urlsplit(target)
            if url.scheme in ("http", "https", "data", "mailto"):
                continue
            file = (out / name).parent / unquote(url.path) if url.path else out / name
            anchors = {None, unquote(url.fragment) or None}
            if file.suffix == ".html" and file.is_file():
                anchors -= pages[file.resolve().relative_to(out.resolve()).as_posix()].anchors
            if not file.is_file() or anchors - {None}:
                problems.append(f"{name} leads to {target}, which is not there")
    return problems


def unknown_names(pages: dict[str, Page], modules: dict[str, pdoc.doc.Module]) -> list[str]:
    """Return a sentence for each quoted `Class.member`, `module.member` or `fewshot_gan.…` that does not exist."""
    owners: dict[str, list[object]] = {"fewshot_gan": [modules["fewshot_gan"].obj]}  # last part of a name → its owners
    problems = []
    for name, module in modules.items():
        if name not in PAGES.values():
            owners.setdefault(name.rpartition(".")[2], []).append(module.obj)
            for key, value in vars(module.obj).items():
                if isinstance(value, type):
                    owners.setdefault(key, []).append(value)
    for page, content in pages.items():
        for name in dict.fromkeys(content.names):
            first, *rest = name.removesuffix("()").split(".")
            if re.fullmatch(r"\w+(\.\w+)+(\(\))?", name) and first in owners and rest[-1] not in FILES:
                if all(_attribute(there, rest) is None for there in owners[first]):
                    problems.append(f"{page} speaks of `{name}`, which the package does not have")
    return problems


def main(argv=None) -> None:
    """Build in a temporary folder, then replace the target with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("build/docs"), help="target folder; replaced")
    out = parser.parse_args(argv).out.absolute()
    if out.exists() and not (out / "search.js").is_file() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"{out} is no folder of documentation; give a new one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
        staged = Path(temp) / out.name
        staged.mkdir()
        if problems := build(staged):
            sys.exit("\n".join([f"documentation not built, {len(problems)} problems:", *problems]))
        if out.exists():
            shutil.rmtree(out)
        staged.rename(out)
    print(f"{out / 'index.html'}  ({len(list(out.rglob('*.html')))} pages)")


if __name__ == "__main__":
    main()
