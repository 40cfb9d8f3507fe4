"""What a worker process of Ray does with the numbers of parts that Daft hands it: one engine, part after part."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from bentoml.exceptions import BentoMLException

from bulk.errors import JobError
from bulk.folder import Folder, PartStats
from bulk.job import Again, Job, Limits, Tally
from bulk.local import LocalEmbedder, settings_from
from bulk.plan import Plan
from embedder.engine import Engine
from embedder.errors import StartError
from embedder.settings import SettingError

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What a worker has to know. It is pickled, and the words have secrets: it is never shown."""

    plan: Plan
    words: Mapping[str, str] = field(repr=False)
    """The environment's settings. A worker makes its own of them: its machine may be of another size."""
    limits: Limits
    again: Again | None
    base: Path
    """Where the paths of files begin that are not absolute."""


class _Process:
    """Of a worker: an event loop in a thread, and the engine on it."""

    def __init__(self, work: Work) -> None:
        self._loop = uvloop.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._engine = self.run(self._started(work))
        self.embedder = LocalEmbedder(self._engine, is_files=work.plan.is_files, base=work.base)

    def run(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _started(self, work: Work) -> Engine:
        from ray import nodes

        # Several of Ray's nodes on one machine share its memory by `workers`, and its cores by the file.
        found: list[dict[str, Any]] = nodes()  # type: ignore[no-untyped-call]  # Any: Ray's
        here = [node for node in found if node["NodeManagerHostname"] == platform.node()]
        workers = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in here)
        settings = settings_from(work.words, concurrency=work.limits.concurrency, workers=max(1, workers))
        cores_file = Path(tempfile.gettempdir()) / f"image-embedder-{os.getuid()}.cores"
        engine = Engine(settings, cores_file=cores_file)
        wanted = work.plan.said["embedder.fingerprint"]
        if engine.spec.fingerprint != wanted:
            raise JobError(f"{engine.spec.tag} there is {engine.spec.fingerprint}, and the job's is {wanted}")
        await engine.start()
        return engine


_process: _Process | None = None
_one_after_another = threading.Lock()


def embedded(work: Work, part: int) -> str:
    """JSON of `host`, and `error` or the part's `stats` and `tally`. Raises nothing: Daft would lose all rows."""
    global _process
    told: dict[str, Any] = {"host": platform.node(), "error": None}  # Any: JSON
    try:
        with _one_after_another:
            if _process is None:
                if not work.plan.folder.is_dir():
                    raise JobError(
                        f"there is no {work.plan.folder}: --out is to be on storage that all share"
                    )
                _process = _Process(work)
            stats, tally = _done(_process, work, part)
        told |= {"stats": vars(stats), "tally": vars(tally)}
    except (JobError, StartError, SettingError, BentoMLException) as error:
        told["error"] = str(error)
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    return json.dumps(told)


def _done(process: _Process, work: Work, part: int) -> tuple[PartStats, Tally]:
    folder = Folder(work.plan.folder)
    done: list[PartStats] = []
    job = Job(work.plan, process.embedder, limits=work.limits, again=work.again, part_done=done.append)
    if work.again is not None or not folder.has(
        part
    ):  # a worker may have died between the part and its answer
        try:
            process.run(job.run([part]))
        except FileNotFoundError:
            if not folder.has(part):  # else another process, taken for dead, finished it meanwhile
                raise
    return done[0] if done else folder.read_stats(part), job.tally
