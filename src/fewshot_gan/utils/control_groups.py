"""The Linux control groups of this process, which limit the cores and the memory of a container."""

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def control_groups(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups and their parents, each with the version of its interface.

    Args:
        controller: "cpu" or "memory".
        root: folder of all control groups.
        own: file that lists the control groups of this process.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = (controller, controllers) if controllers else ("", "unified")
        for top in (root / name for name in names):
            group = top / path.strip("/")
            for folder in (group, *group.parents):  # a container may not see its own name; then the root is its group
                yield folder, 1 if controllers else 2
                if folder == top:
                    break


def read_number(path: Path) -> int | None:
    """Return the whole number in a file; None if there is no such file, or no number in it (e.g. "max")."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
