"""Images and containers of docker or podman, whose commands are the same, for `make test-container`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

ENGINES = ("docker", "podman")
"""buildah builds images too, but runs no containers."""

NOT_OF_THE_IMAGE = {("dev",), ("proc",), ("sys",), ("tmp",)}
MADE_BY_THE_ENGINE = re.compile(
    r"/(tmp(/.*)?|dev|etc|proc|run|sys|etc/(hosts|hostname|mtab|resolv\.conf)|run/\.containerenv)"
)
"""What `diff` lists though the service wrote nothing: folders and files that are mounted."""

# podman as root gives a container 1,048,576 descriptors, which root may not without CAP_SYS_RESOURCE. Its
# crun refuses a machine with control groups of both versions. Its networks take programs that may be missing.
MODEST_PODMAN = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc=1024:1024"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""


@dataclass(frozen=True)
class File:
    kind: str
    """file, folder, link, or other."""
    mode: int
    owner: int
    bytes: int
    """0 for all but one of the names of a file."""
    content: str
    """The sha256 of a file; where a link leads, or another name of the file."""


@dataclass(frozen=True)
class Config:
    user: str
    environ: Mapping[str, str]
    ports: tuple[str, ...]
    healthcheck: tuple[str, ...]


class EngineError(Exception):
    """A command of the engine failed; the message is the command and its error."""


@dataclass(frozen=True)
class Engine:
    name: str
    """docker or podman."""

    def has(self, image: str) -> bool:
        return _run(self.name, "image", "inspect", image).returncode == 0

    def pull(self, image: str) -> None:
        """Raises `EngineError` where no registry answers."""
        _output(self.name, "pull", "--quiet", image)

    def config(self, image: str) -> Config:
        (inspected,) = json.loads(_output(self.name, "image", "inspect", image))
        config: dict[str, Any] = inspected["Config"]  # Any: JSON
        # docker has it in the configuration; podman beside that.
        healthcheck = config.get("Healthcheck") or inspected.get("Healthcheck") or {}
        test = healthcheck.get("Test") or ()
        return Config(
            user=config.get("User") or "",
            environ=dict(variable.split("=", 1) for variable in config.get("Env") or ()),
            ports=tuple(config.get("ExposedPorts") or ()),
            healthcheck=tuple(test[1:]) if test[:1] == ["CMD"] else (),
        )

    def files(self, image: str) -> dict[str, File]:
        """All of them by path, but for those in /dev, /proc, /sys and /tmp."""
        container = _output(self.name, "create", image, "true").strip()
        try:
            return _files(self.name, "export", container)
        finally:
            _output(self.name, "rm", container)

    def container(
        self, image: str, *, environ: Mapping[str, str], network: bool, read_only: bool
    ) -> Container:
        """`network`: this machine's own; else none but a loopback interface."""
        created = _output(
            *(self.name, "create", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            *("--log-driver=json-file", f"--network={'host' if network else 'none'}"),
            *(("--read-only", "--tmpfs=/tmp") if read_only else ()),
            *(f"--env={name}={value}" for name, value in environ.items()),
            image,
        )
        return Container(self.name, created.strip())

    def remove(self, image: str) -> None:
        _output(self.name, "image", "rm", image)

    def make_run(self, image: str, folder: Path) -> None:
        """Tries whether `image` runs here; if podman can't, configures it for this process, in `folder`.

        Raises `EngineError` where it does not run.
        """
        tried = (self.name, "run", "--rm", "--network=none", image, "true")
        if _run(*tried).returncode != 0 and self.name == "podman" and "CONTAINERS_CONF" not in os.environ:
            configuration = folder / "containers.conf"
            configuration.write_text(MODEST_PODMAN.format(files=min(os.sysconf("SC_OPEN_MAX"), 20_000)))
            os.environ["CONTAINERS_CONF"] = str(configuration)  # of this tool, and of all that it starts
        _output(*tried)


@dataclass(frozen=True)
class Container:
    """One container, which can be started again after it has ended."""

    engine: str
    id: str

    def start(self) -> None:
        _output(self.engine, "start", self.id)

    def log(self) -> str:
        done = _run(self.engine, "logs", self.id)
        return done.stdout + done.stderr

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command beside the service's: same user, file system and network."""
        return _run(self.engine, "exec", "--interactive", self.id, *command, stdin=stdin)

    def terminate(self) -> None:
        """SIGTERM to its first process, as when it is to stop."""
        _output(self.engine, "kill", "--signal=TERM", self.id)

    def wait(self, timeout_s: float) -> int:
        """The status with which it ended."""
        return int(_output(self.engine, "wait", self.id, timeout_s=timeout_s))

    def changed(self) -> list[str]:
        """The files that were made, changed or removed outside /tmp since it was made."""
        paths = [line.split(maxsplit=1)[1] for line in _output(self.engine, "diff", self.id).splitlines()]
        return [path for path in paths if not MADE_BY_THE_ENGINE.fullmatch(path)]

    def remove(self) -> None:
        _output(self.engine, "rm", "--force", self.id)


def _files(*command: str) -> dict[str, File]:
    """What is in the tar that `command` writes."""
    found = {}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            path = Path("/", member.name)
            if path.parts[1:2] not in NOT_OF_THE_IMAGE:
                reader = archive.extractfile(member) if member.isreg() else None
                content = sha256(reader.read()).hexdigest() if reader else member.linkname
                found[str(path)] = File(_kind(member), member.mode, member.uid, member.size, content)
    if process.returncode != 0:
        raise EngineError(f"{' '.join(command)} ended with {process.returncode}")
    return found


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg() or member.islnk():
        return "file"
    return "folder" if member.isdir() else "link" if member.issym() else "other"


def _run(*command: str, stdin: str = "", timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)


def _output(*command: str, timeout_s: float | None = None) -> str:
    done = _run(*command, timeout_s=timeout_s)
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)[:200]}: {done.stderr.strip()}")
    return done.stdout
