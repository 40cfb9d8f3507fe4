"""The limits of this process's own control group and of those around it, cgroups(7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Cgroup:
    """Reads limit files, version 2 and version 1.

    A container mostly sees its own group as the root. Under systemd, a batch scheduler or `--cgroupns host` the
    group is somewhere below the root, and /proc/self/cgroup says where. Each group around it may limit it too.
    """

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def limits(self, controller: str, *, v2: str, v1: tuple[str, ...]) -> Iterator[str]:
        """The text of the file `v2`, or of the files `v1` joined by a blank, in each group that has them.

        `controller` names version 1's hierarchy: cpu or memory.
        """
        paths = self._paths()
        for group in _with_parents(self.mount, paths.get("", "/")):
            yield from _text(group / v2)
        for group in _with_parents(self.mount / controller, paths.get(controller, "/")):
            yield from _text(*(group / name for name in v1))

    def _paths(self) -> dict[str, str]:
        """This process's group, by controller; version 2's is at ""."""
        paths = {}
        for line in "".join(_text(self.membership)).splitlines():
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
        return paths


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """The group at `path` and all above it. Seen from inside a container `path` may lead nowhere; `mount` is there."""
    relative = PurePosixPath(path.lstrip("/"))
    for group in (relative, *relative.parents):
        if ".." not in group.parts:  # a group outside of this process's namespace
            yield mount / group


def _text(*files: Path) -> Iterator[str]:
    """The files' texts as one; nothing where one of them can't be read."""
    try:
        yield " ".join(file.read_text() for file in files)
    except (OSError, ValueError):  # ValueError: it is not text
        return
