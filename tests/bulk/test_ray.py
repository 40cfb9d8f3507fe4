"""`--runner ray` on a real cluster of two raylets: the local run's result, whichever of them is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import IO

import pytest

from tests.bulk.catalogues import Row, command, embed, environ, parts, pictures, write_csv
from tests.bulk.ray_cluster import ENVIRON
from tests.origin import Origin
from tests.server import ROOT, until

COUNT = 150
CUT = ("--shard-rows", "15")


@dataclass
class Cluster:
    address: str
    raylets: list[int]
    home: Path
    """The workers' BENTOML_HOME, a link."""
    process: subprocess.Popen[str]

    @property
    def runner(self) -> tuple[str, ...]:
        return ("--runner", "ray", "--ray-address", self.address)

    def added(self) -> int:
        """The process id of one more raylet."""
        stdin, stdout = _pipes(self.process)
        stdin.write("\n")
        stdin.flush()
        self.raylets.append(int(stdout.readline()))
        return self.raylets[-1]


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@pytest.fixture(scope="module")
def cluster(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    home = folder / "home"
    home.symlink_to(store)
    words = {**os.environ, **ENVIRON, "BENTOML_HOME": str(home)}
    line = [sys.executable, "-m", "tests.bulk.ray_cluster"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            line, cwd=ROOT, env=words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        stdin, stdout = _pipes(process)
        said = stdout.readline()
        assert said, (folder / "log").read_text()
        yield Cluster(**json.loads(said), home=home, process=process)
        stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def words(store: Path, origin: Origin) -> dict[str, str]:
    return environ(store, origin, **ENVIRON)


@pytest.fixture(scope="module")
def whole(shop_csv: Path, words: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors of `shop_csv`, made without Ray."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = embed(words, shop_csv, "--out", folder, *CUT)
    assert done.returncode == 0, done.stderr
    return folder


def assert_equal(folder: Path, whole: Path) -> None:
    assert parts(folder).equals(parts(whole))
    names = {file.name for file in whole.rglob("*") if file.is_file()}
    assert {file.name for file in folder.rglob("*") if file.is_file()} == names  # so, no half-written ones
    assert [file.name for file in folder.glob("part-*") if not file.stat().st_size] == []
    assert (folder / "errors.csv").read_text() == (whole / "errors.csv").read_text()
    for name in ("rows", "success", "failed", "errors", "bytes", "parts", "fingerprint"):
        assert summary(folder)[name] == summary(whole)[name]


def summary(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return content


def ours(said: str) -> list[str]:
    """The lines that are not of Ray's C++ log: of machines that died it writes there, whatever Python's is set to."""
    return [line for line in said.splitlines() if not re.match(r"\[[0-9]{4}-", line)]


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found += [int(word) for word in file.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def worker(raylet: int) -> int | None:
    """The process below it that embeds: none but it has others below it, which decode."""
    return next((pid for pid in children(raylet) if children(pid)), None)


def ended_or(process: subprocess.Popen[str], condition: Callable[[], object]) -> Callable[[], object]:
    return lambda: condition() or process.poll() is not None


@pytest.mark.parametrize("whose", ["the worker process", "a raylet with all that it started"])
def test_with_a_worker_killed_in_the_middle_it_equals_the_local_run(
    whose: str, cluster: Cluster, whole: Path, shop_csv: Path, words: dict[str, str], tmp_path: Path
) -> None:
    raylet = cluster.raylets[1] if whose == "the worker process" else cluster.added()
    folder = tmp_path / "out"
    line = command(shop_csv, "--out", folder, *CUT, *cluster.runner, "--progress", "json")
    with subprocess.Popen(line, env=words, stderr=subprocess.PIPE, text=True) as process:
        until(ended_or(process, lambda: worker(raylet) and list(folder.glob("part-*.json"))))
        found = worker(raylet)
        assert found is not None, process.poll()
        killed = [found] if whose == "the worker process" else [raylet, *descendants(raylet)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert len(list(folder.glob("part-*.json"))) < COUNT // 15
        _, said = process.communicate(timeout=120)
    if whose != "the worker process":
        cluster.raylets.remove(raylet)
    assert process.returncode == 0, said
    assert_equal(folder, whole)
    told = [json.loads(text)["part"] for text in said.splitlines() if text.startswith("{")]
    assert told == list(range(COUNT // 15))
    assert len(ours(said)) == 2 + len(told) + 3, said


def test_interrupted_it_says_how_to_go_on_and_goes_on(
    cluster: Cluster, whole: Path, shop_csv: Path, words: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    line = command(shop_csv, "--out", folder, *CUT, *cluster.runner, "--progress", "none")
    for signum in (signal.SIGINT, signal.SIGTERM):
        before = len(list(folder.glob("part-*.json")))
        with subprocess.Popen(line, env=words, stderr=subprocess.PIPE, text=True) as process:
            until(ended_or(process, lambda: len(list(folder.glob("part-*.json"))) > before))  # noqa: B023
            process.send_signal(signum)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "the same command goes on" in ours(said)[-1]
        assert "Traceback" not in said
        until(
            lambda: all(worker(raylet) is None for raylet in cluster.raylets)
        )  # Ray ends them after the driver
    done = {file: file.stat().st_mtime_ns for file in folder.glob("_plan/*")}
    assert len(done) < COUNT // 15 + 1
    again = embed(words, shop_csv, "--out", folder, *CUT, *cluster.runner)
    assert again.returncode == 0, again.stderr
    assert "going on: " in again.stderr.splitlines()[1]
    assert_equal(folder, whole)


def test_rows_whose_cause_may_pass_are_repeated_in_place(
    cluster: Cluster, origin: Origin, words: dict[str, str], tmp_path: Path
) -> None:
    files = pictures(8)
    made = [Row(str(n), origin.url(f"/passes/{n}.jpg"), "1", "") for n in range(8)]
    for number, file in enumerate(files):
        origin.serve(f"/passes/{number}.jpg", file, status=500 if number in (1, 2, 6) else 200)
    origin.serve("/passes/6.jpg", b"", status=404)
    line = (write_csv(tmp_path / "shop.csv", made), "--out", tmp_path / "out", "--shard-rows", "2")
    first = embed(words, *line)
    assert first.returncode == 0, first.stderr
    before = len(origin.requests)
    for number in (1, 2):
        origin.serve(f"/passes/{number}.jpg", files[number])
    again = embed(words, *line, *cluster.runner, "--retry-failed")
    assert again.returncode == 0, again.stderr
    status = parts(tmp_path / "out")["http_status"].to_pylist()
    assert status == [None, None, None, None, None, None, 404, None]
    asked = sorted(request.path for request in origin.requests[before:])
    assert asked == ["/passes/1.jpg", "/passes/2.jpg"]
    assert parts(tmp_path / "out")["id"].to_pylist() == [row.sku for row in made]


def test_a_worker_that_can_not_start_is_one_line_and_2(
    cluster: Cluster, store: Path, shop_csv: Path, words: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    cluster.home.unlink()
    cluster.home.symlink_to(tmp_path / "empty")
    try:
        done = embed(words, shop_csv, "--out", tmp_path / "out", *CUT, *cluster.runner)
    finally:
        cluster.home.unlink()
        cluster.home.symlink_to(store)
    assert done.returncode == 2
    assert len(ours(done.stderr)) == 3, done.stderr  # what was found, the plan, and this
    assert done.stderr.splitlines()[-1].startswith("embed_catalogue: the worker on ")
    assert "can't go on: there is no model resnet18:latest" in done.stderr.splitlines()[-1]


def test_over_the_failure_rate_it_stops_with_3(
    cluster: Cluster, origin: Origin, words: dict[str, str], tmp_path: Path
) -> None:
    made = [Row(str(n), origin.url(f"/none/{n}.jpg"), "", "") for n in range(1500)]
    line = (write_csv(tmp_path / "shop.csv", made), "--out", tmp_path / "out", "--shard-rows", "250")
    done = embed(words, *line, "--max-failure-rate", "0.5", *cluster.runner)
    assert done.returncode == 3, done.stderr
    assert "over --max-failure-rate 0.5; fetch_failed " in done.stderr.splitlines()[-1]


def test_without_an_address_a_cluster_for_this_machine_embeds_image_files_and_ends(
    words: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for number, file in enumerate(pictures(9)):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(file)
    alone = {name: word for name, word in words.items() if name not in ENVIRON} | {"HOME": str(tmp_path)}
    assert embed(alone, "photos", "--out", "whole", "--shard-rows", "3", cwd=tmp_path).returncode == 0
    line = command("photos", "--out", "out", "--shard-rows", "3", "--runner", "ray", "--progress", "none")
    with subprocess.Popen(line, env=alone, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        until(ended_or(process, lambda: list((tmp_path / "out").glob("part-*.json"))))
        started = descendants(process.pid)
        parents = [
            pid for pid in started if children(pid)
        ]  # Ray's agents, which have none, go after a minute
        addresses = {address for pid in (process.pid, *started) for address in listening(pid)}
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert_equal(tmp_path / "out", tmp_path / "whole")
    assert len(started) > 3
    assert addresses
    assert all(address.is_loopback for address in addresses), addresses
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in parents))


def listening(pid: int) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that a process takes TCP connections at. ::ffff:127.0.0.1 is 127.0.0.1."""
    try:
        opened = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return
    for name, address in (("tcp", IPv4Address), ("tcp6", IPv6Address)):
        for text in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = text.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in opened:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = [
                    raw[at : at + 4][::-1] for at in range(0, len(raw), 4)
                ]  # each of the machine's order
                found = address(b"".join(words))
                yield getattr(found, "ipv4_mapped", None) or found


def test_no_cluster_and_no_ray_are_one_line_and_2(
    shop_csv: Path, words: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "ray.py").write_text("raise ImportError('no ray')\n")
    without = words | {"PYTHONPATH": str(tmp_path / "without")}
    for given, more, says in (
        (without, (), "--runner ray takes Ray: python scripts/setup.py ray"),
        (words, ("--server", "http://127.0.0.1:1"), "--server and --runner ray don't go together"),
        (words, ("--ray-address", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1: "),
    ):
        done = embed(given, shop_csv, "--out", tmp_path / "out", "--runner", "ray", *more)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"embed_catalogue: {says}")
        assert "Traceback" not in done.stderr
