"""Files and folders whose names count: `checkpoint-000100`, `step-000100.png`."""

import re
from pathlib import Path


def numbered(folder: Path, beginning: str, ending: str = "") -> dict[int, Path]:
    """Number → path of what `folder` has by the name `beginning`, digits, `ending`; ascending as numbers, not as text.

    What is called otherwise is somebody else's, and no folder has nothing. Of two names of one number the padded one
    counts.
    """
    called = re.compile(f"{re.escape(beginning)}([0-9]{{1,18}}){re.escape(ending)}")
    names = sorted(path.name for path in Path(folder).glob(f"{beginning}*")) if Path(folder).is_dir() else []
    found = {int(match[1]): folder / match[0] for name in reversed(names) if (match := called.fullmatch(name))}
    return dict(sorted(found.items()))
