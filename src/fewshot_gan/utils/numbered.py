"""Files and folders with numbered names: `checkpoint-000100`, `step-000100.png`."""

import re
from pathlib import Path


def numbered_paths(folder: Path, beginning: str, ending: str = "") -> dict[int, Path]:
    """Return number → path for all names made of `beginning`, digits and `ending`, in ascending order of the numbers.

    Other names are ignored; a folder that does not exist has none. If two names have the same number, the one with
    leading zeros is returned.
    """
    pattern = re.compile(f"{re.escape(beginning)}([0-9]{{1,18}}){re.escape(ending)}")
    names = sorted(path.name for path in Path(folder).glob(f"{beginning}*")) if Path(folder).is_dir() else []
    paths = {int(match[1]): folder / match[0] for name in reversed(names) if (match := pattern.fullmatch(name))}
    return dict(sorted(paths.items()))
