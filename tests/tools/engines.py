"""Images and containers, as docker and podman have them, and as buildah's are run without either.

buildah builds images and runs none. What a container is made of, the system has: namespaces for processes,
mounts and the network, a root that is mounted read-only with a tmpfs for /tmp, the image's user, environment
and command.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from tests.server import until

NOT_OF_THE_IMAGE = {("dev",), ("proc",), ("sys",), ("tmp",)}

# The namespaces are made; what remains is what must happen inside them.
ENTER = """
set -e
root=$1 read_only=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
if [ "$read_only" = yes ]; then
    mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs "$root/tmp"  # as docker does
    mount -o remount,bind,ro "$root"
fi
cd "$root"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
"""

# As `docker run --network none` has it: a loopback interface that works, and nothing else.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
IFF_UP, SIOCSIFFLAGS = 1, 0x8914
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
os.execvp(sys.argv[1], sys.argv[1:])
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
    command: tuple[str, ...]
    folder: str
    ports: tuple[str, ...]
    healthcheck: tuple[str, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], healthcheck: Mapping[str, Any] | None) -> Config:
        test = (healthcheck or {}).get("Test") or ()
        return cls(
            user=config.get("User") or "",
            environ=dict(variable.split("=", 1) for variable in config.get("Env") or ()),
            command=(*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
            folder=config.get("WorkingDir") or "/",
            ports=tuple(config.get("ExposedPorts") or ()),
            healthcheck=tuple(test[1:]) if test[:1] == ["CMD"] else (),
        )


class Container(Protocol):
    """One container, which can be started again after it has ended. Its standard output is in `log()`."""

    def start(self) -> None: ...

    def log(self) -> str: ...

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command beside the service's: same user, file system and network."""

    def terminate(self) -> None:
        """SIGTERM to its first process, as when it is to stop."""

    def wait(self, timeout_s: float) -> int:
        """The status with which it ended."""

    def changed(self) -> list[str]:
        """The files that were made, changed or removed outside /tmp since it was made."""

    def remove(self) -> None: ...


class Engine(Protocol):
    def config(self, image: str) -> Config: ...

    def files(self, image: str) -> dict[str, File]:
        """All of them by path, but for those in /dev, /proc, /sys and /tmp."""

    def container(
        self, image: str, *, environ: Mapping[str, str], network: bool, read_only: bool
    ) -> Container:
        """`network`: this machine's own; else none but a loopback interface."""

    def remove(self, image: str) -> None: ...


def engine(name: str) -> Engine:
    return Buildah() if name == "buildah" else DockerLike(name)


@dataclass(frozen=True)
class DockerLike:
    """docker, or podman, whose commands are the same."""

    name: str

    def config(self, image: str) -> Config:
        (inspected,) = json.loads(_output(self.name, "image", "inspect", image))
        config = inspected["Config"]
        return Config.read(config, config.get("Healthcheck") or inspected.get("HealthCheck"))

    def files(self, image: str) -> dict[str, File]:
        container = _output(self.name, "create", image, "true").strip()
        try:
            return _files(self.name, "export", container)
        finally:
            _output(self.name, "rm", container)

    def container(
        self, image: str, *, environ: Mapping[str, str], network: bool, read_only: bool
    ) -> Container:
        created = _output(
            *(self.name, "create", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            f"--network={'host' if network else 'none'}",
            *(("--read-only", "--tmpfs=/tmp") if read_only else ()),
            *(f"--env={name}={value}" for name, value in environ.items()),
            image,
        )
        return DockerContainer(self.name, created.strip())

    def remove(self, image: str) -> None:
        _output(self.name, "image", "rm", image)


@dataclass(frozen=True)
class DockerContainer:
    docker: str
    id: str

    def start(self) -> None:
        _output(self.docker, "start", self.id)

    def log(self) -> str:
        done = subprocess.run([self.docker, "logs", self.id], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.docker, "exec", "--interactive", self.id, *command],
            input=stdin,
            capture_output=True,
            text=True,
        )

    def terminate(self) -> None:
        _output(self.docker, "kill", "--signal=TERM", self.id)

    def wait(self, timeout_s: float) -> int:
        done = subprocess.run(
            [self.docker, "wait", self.id], capture_output=True, text=True, check=True, timeout=timeout_s
        )
        return int(done.stdout)

    def changed(self) -> list[str]:
        paths = [line.split(maxsplit=1)[1] for line in _output(self.docker, "diff", self.id).splitlines()]
        return [path for path in paths if Path(path).parts[:2] != ("/", "tmp")]

    def remove(self) -> None:
        _output(self.docker, "rm", "--force", self.id)


@dataclass(frozen=True)
class Buildah:
    def config(self, image: str) -> Config:
        config = json.loads(_output("buildah", "inspect", "--type=image", image))["Docker"]["config"]
        return Config.read(config, config.get("Healthcheck"))

    def files(self, image: str) -> dict[str, File]:
        name, root = self._mounted(image)
        try:
            return _files("tar", "--create", "--sort=name", "--numeric-owner", f"--directory={root}", ".")
        finally:
            _output("buildah", "rm", name)

    def container(
        self, image: str, *, environ: Mapping[str, str], network: bool, read_only: bool
    ) -> Container:
        name, root = self._mounted(image)
        return BuildahContainer(name, root, self.config(image), environ, network, read_only)

    def remove(self, image: str) -> None:
        _output("buildah", "rmi", image)

    def _mounted(self, image: str) -> tuple[str, Path]:
        name = _output("buildah", "from", "--pull-never", image).strip()
        return name, Path(_output("buildah", "mount", name).strip())


class BuildahContainer:
    def __init__(
        self,
        name: str,
        root: Path,
        config: Config,
        environ: Mapping[str, str],
        network: bool,
        read_only: bool,
    ) -> None:
        self._name = name
        self._root = root
        self._config = config
        self._network = network
        self._read_only = read_only
        variables = {**config.environ, **environ}
        assignments = (f"{name}={value}" for name, value in variables.items())
        self._as_configured = ("env", "--ignore-environment", f"--chdir={config.folder}", *assignments)
        self._process: subprocess.Popen[bytes] | None = None
        for folder in ("dev", "proc", "tmp"):  # an engine makes those that the image has not
            (root / folder).mkdir(exist_ok=True)
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # and this
        self._folder = Path(tempfile.mkdtemp())
        self._log = self._folder / "log"
        self._at_first = self._states()

    def start(self) -> None:
        unshare = ["unshare", "--mount", "--pid", "--fork"]
        if not self._network:
            unshare += ["--net", sys.executable, "-c", LOOPBACK_UP]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*unshare, "sh", "-c", ENTER, "sh"),
                    *(self._root, "yes" if self._read_only else "no", self._config.user),
                    *(*self._as_configured, *self._config.command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: self._has_ended() or self._first())

    def log(self) -> str:
        return self._log.read_text()

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        user, _, group = self._config.user.partition(":")
        return subprocess.run(
            [
                *("nsenter", f"--target={self._first()}", "--mount", "--pid", "--net", "--root", "--wd"),
                *(f"--setgid={group}", f"--setuid={user}", "--", *self._as_configured, *command),
            ],
            input=stdin,
            capture_output=True,
            text=True,
        )

    def terminate(self) -> None:
        first = self._first()
        assert first is not None
        os.kill(first, signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def changed(self) -> list[str]:
        now = self._states()
        return [path for path in now.keys() | self._at_first if now.get(path) != self._at_first.get(path)]

    def remove(self) -> None:
        if self._process is not None and not self._has_ended():
            first = self._first()
            if first is not None:
                os.kill(first, signal.SIGKILL)  # and with it all that is beside it
            self._process.wait(10)
        _output("buildah", "rm", self._name)
        shutil.rmtree(self._folder)

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _first(self) -> int | None:
        """This machine's number of the process that is number 1 inside."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _states(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for folder, folders, files in os.walk(self._root):
            if folder == str(self._root):
                folders.remove("tmp")
            for name in (*folders, *files):
                info = os.lstat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = (
                    info.st_mode,
                    info.st_uid,
                    info.st_size,
                    info.st_ctime_ns,
                )
        return found


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
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return found


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg() or member.islnk():
        return "file"
    return "folder" if member.isdir() else "link" if member.issym() else "other"


def _output(*command: str | Sequence[str]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}: {done.stderr}")
    return done.stdout
