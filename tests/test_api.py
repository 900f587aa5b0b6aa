"""What others may rely on: every public name with its signature, and every command with its options, as golden/api.txt.

After a change that is meant, `python tests/test_api.py` writes the file again; its difference belongs to the commit.
"""

import importlib
import inspect
import pkgutil
import re
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin

from typer.models import OptionInfo

import fewshot_gan
from fewshot_gan.cli import app

GOLDEN = Path(__file__).parent / "golden" / "api.txt"
AGAIN = "if this is meant, run: python tests/test_api.py"


def modules():
    """The package and its modules but those with a leading underscore."""
    yield fewshot_gan
    for found in pkgutil.walk_packages(fewshot_gan.__path__, "fewshot_gan."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def value(default):
    """A default as text that is the same in every process and version of Python."""
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    if isinstance(default, dict):
        return "{" + ", ".join(f"{value(k)}: {value(v)}" for k, v in default.items()) + "}"
    if isinstance(default, set | frozenset):
        return "{" + ", ".join(sorted(map(value, default))) + "}"
    if isinstance(default, list | tuple):
        return f"{type(default).__name__}({', '.join(map(value, default))})"
    if isinstance(default, Path):
        return f"Path({default.as_posix()!r})"
    if default is None or isinstance(default, str | bytes | bool | int | float) or repr(default) == "<factory>":
        return repr(default)  # the last of a dataclass
    return getattr(default, "__qualname__", None) or f"<{type(default).__qualname__}>"


def signature(function):
    """`(a, /, b, *args, c=1, **kwargs)`: names, kinds and defaults without annotations."""
    shown = inspect.signature(function)
    parameters = []
    for p in shown.parameters.values():
        default = inspect.Parameter.empty if p.default is p.empty else Text(value(p.default))
        parameters.append(p.replace(annotation=p.empty, default=default))
    return str(shown.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class Text(str):
    def __repr__(self):
        return str(self)


def ours(thing):
    return (getattr(thing, "__module__", None) or "").split(".")[0] == "fewshot_gan"


def methods(kind):
    """`(name, line)` of the public methods and properties that the package gives a class."""
    for name in sorted({name for base in kind.__mro__ if ours(base) for name in vars(base)}):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        owner = next(base for base in kind.__mro__ if name in vars(base))
        if owner is not kind and (not ours(owner) or not owner.__name__.startswith("_")):
            continue  # listed where it is defined
        member = vars(owner)[name]
        if isinstance(member, property) or type(member).__name__ == "cached_property":
            yield name, ": property"
        elif isinstance(member, classmethod | staticmethod):
            yield name, f"{signature(getattr(kind, name))}: {type(member).__name__}"
        elif inspect.isfunction(member):
            yield name, signature(member)


def names_of(module):
    """`(name, object)` of what a module offers: `__all__`, or what it defines without a leading underscore."""
    if listed := getattr(module, "__all__", None):
        return [(name, getattr(module, name)) for name in sorted(listed)]
    public = sorted(name for name in vars(module) if not name.startswith("_"))
    return [(n, v) for n in public if getattr(v := getattr(module, n), "__module__", None) == module.__name__]


def lines():
    """name → what it is, of everything public."""
    found = {}
    for module in modules():
        found[module.__name__] = "module"
        for name, thing in names_of(module):
            path = f"{module.__name__}.{name}"
            if ours(thing) and thing.__module__ != module.__name__:
                found[path] = f"is {thing.__module__}.{thing.__qualname__}"
            elif inspect.isclass(thing) and issubclass(thing, Enum):
                found[path] = "enum " + ", ".join(f"{m.name}={m.value!r}" for m in thing)
            elif inspect.isclass(thing):
                bases = [base.__name__ for base in thing.__bases__ if base is not object]
                found[path] = f"class({', '.join(bases)})"
                found |= {f"{path}.{member}": line for member, line in methods(thing)}
            elif callable(thing) and ours(thing):
                found[path] = signature(thing)
            else:
                found[path] = type(thing).__name__
    return found | dict(options())


def options():
    """`(fewshot-gan command --option, kind and default)` of the command line, as typer is told them."""
    yield "fewshot-gan --version", "flag"
    for command in app.registered_commands:
        name = f"fewshot-gan {command.name or command.callback.__name__.replace('_', '-')}"
        yield name, "command"
        for p in inspect.signature(command.callback).parameters.values():
            kind, told = get_args(p.annotation)
            required = p.default is p.empty
            shown = p.name
            if isinstance(told, OptionInfo):
                declared = [text for text in (told.default, *(told.param_decls or ())) if isinstance(text, str)]
                shown = "/".join(declared) or "--" + p.name.replace("_", "-")
            (kind, *_) = [k for k in get_args(kind) if k is not NoneType] if type(kind) is UnionType else [kind]
            many = get_origin(kind) is list
            kind = get_args(kind)[0] if many else kind
            said = "|".join(member.value for member in kind) if issubclass(kind, Enum) else kind.__name__
            said += " required" if required else f" = {value(p.default)}"
            yield f"{name} {shown}", said + (" repeatable" if many else "")


def read():
    return dict(line.split("  ", 1) for line in GOLDEN.read_text(encoding="utf-8").splitlines())


def test_nothing_public_changed_unsaid():
    before, now = read(), lines()
    removed = [f"removed: {name}  {before[name]}" for name in before.keys() - now.keys()]
    added = [f"added: {name}  {now[name]}" for name in now.keys() - before.keys()]
    both = before.keys() & now.keys()
    changed = [f"changed: {n}  {before[n]}  ->  {now[n]}" for n in both if before[n] != now[n]]
    told = "\n".join([*sorted(removed), *sorted(changed), *sorted(added)])
    assert not told, f"\n{told}\n{AGAIN}"


def test_what_is_written_is_the_same_everywhere():
    text = GOLDEN.read_text(encoding="utf-8")
    assert not re.search(r"0x[0-9a-f]{6,}|<function|<class|/tmp/|/home/", text)
    for name in ("FewShotGAN", "convert_checkpoint"):
        assert f"fewshot_gan.{name}  is " in text
    assert "fewshot_gan.adapter_loader.AdapterMixin.load_adapter  (self, " in text
    assert "fewshot-gan generate --seed  int = 0\n" in text


def test_signatures():
    def function(a, /, b, *args, c=Path("x"), d=print, e=(1, "x"), f=object(), **kwargs):  # noqa: B008
        pass

    assert signature(function) == "(a, /, b, *args, c=Path('x'), d=print, e=tuple(1, 'x'), f=<object>, **kwargs)"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(f"{name}  {line}\n" for name, line in sorted(lines().items())), encoding="utf-8")
    print(f"{GOLDEN}  ({len(read())} lines)")
