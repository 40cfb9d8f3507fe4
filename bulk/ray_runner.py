"""Parts of a plan on a Ray cluster: Daft hands out their numbers, and each worker process embeds one after another.

    numbers of parts ─► Daft ─► worker: Job, for one part ─► part in the folder
                         ◄──────────── a row: what became of it

Nothing else travels: the plan and the parts are in the folder, on storage that all machines share. A part whose worker
died is begun again by another one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bulk.daft_tables import daft_module
from bulk.errors import JobError
from bulk.files import remove_leftovers
from bulk.folder import Folder, PartStats
from bulk.job import Again, Limits, Tally
from bulk.plan import PLAN, Plan
from bulk.ray_worker import Work, embedded
from embedder.runtime.cpu import available_cores

ROOT = Path(__file__).resolve().parent.parent
SEEN_S = 90.0
"""For parts that other machines wrote to be seen here: NFS looks into a folder again after up to 60 s."""
DIAL_S = 10.0
_STORE_BYTES = 100_000_000  # for rows of 1 kB; Ray would take 30 % of the memory


class RayJob:
    """As `Job`, on a cluster. For one event loop.

    `address` is the cluster's; None starts one here, with one worker process on all cores. `words` is an environment.
    """

    def __init__(
        self,
        plan: Plan,
        words: Mapping[str, str],
        *,
        address: str | None,
        limits: Limits,
        again: Again | None,
        part_done: Callable[[PartStats], object],
    ) -> None:
        self.tally = Tally()
        self.over_rate = False
        self._address = address
        self._max_failure_rate = limits.max_failure_rate
        self._part_done = part_done
        settings = {
            name: text
            for name, text in words.items()
            if name.upper().startswith("EMBEDDER_") and name.upper() != "EMBEDDER_API_KEYS"
        }
        # The rate is of the whole job. One part may have more: a brand's server that is gone is in few parts.
        free = replace(limits, max_failure_rate=1.0)
        folder = plan.folder.resolve()
        self._work = Work(replace(plan, folder=folder), settings, free, again, Path.cwd())
        self._rows: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def stop(self) -> None:
        """Begin nothing more. `run` ends: what is in work is lost but for what was written every minute."""
        self._rows.put_nowait(None)

    async def run(self, parts: Iterable[int]) -> bool:
        """Whether all `parts` are done. Raises JobError."""
        numbers = list(parts)
        if not numbers:
            return True
        left = len(numbers)
        ray, daft = _modules(here=self._address is None)
        loop = asyncio.get_running_loop()

        # In a thread: Ray would put its own handler for SIGTERM in place of ours. And it may take minutes to connect,
        # which the end of this process does not wait for.
        def query() -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody waits for this any more
                for row in _rows(ray, daft, self._address, self._work, numbers):
                    loop.call_soon_threadsafe(self._rows.put_nowait, row)

        threading.Thread(target=query, daemon=True).start()
        while left and not self.over_rate and (row := await self._rows.get()) is not None:
            self._take(row)
            left -= 1
        # Ray is shut down only when Daft waits for nothing any more. Earlier, it would end this process with 1 in the
        # middle of what is still to be said. The workers of a process that ends are ended by their cluster.
        if left:
            return False
        await asyncio.to_thread(ray.shutdown)
        for folder in (self._work.plan.folder, self._work.plan.folder / PLAN):
            remove_leftovers(folder)
        await self._seen()
        return True

    def _take(self, row: str | Exception) -> None:
        if isinstance(row, JobError):
            raise row
        if isinstance(row, Exception):
            raise JobError(
                f"the cluster can't go on: {_line(row)}; what was done is kept: the same command goes on"
            ) from row
        told = json.loads(row)
        if told["error"] is not None:
            raise JobError(f"the worker on {told['host']} can't go on: {told['error']}")
        tally = Tally(**told["tally"])
        self.tally.rows += tally.rows
        self.tally.there += tally.there
        self.tally.bytes += tally.bytes
        for code, count in tally.failed.items():
            self.tally.failed[code] = self.tally.failed.get(code, 0) + count
        self._part_done(PartStats(**told["stats"]))
        self.over_rate = self.tally.is_over(self._max_failure_rate)

    async def _seen(self) -> None:
        """Waits until the folder has all parts, as this machine sees it. Raises JobError where it never does."""
        folder, loop = Folder(self._work.plan.folder), asyncio.get_running_loop()
        until_s = loop.time() + SEEN_S
        while len(folder.done()) < self._work.plan.parts:
            if loop.time() > until_s:
                raise JobError(f"{folder.path} lacks parts that workers wrote: is it the same folder on all?")
            await asyncio.sleep(1)


def _modules(*, here: bool) -> tuple[Any, Any]:  # Any: Ray and Daft, which are there only with their extra
    """Both report their use, and Ray listens on all addresses, unless they are told not to before the import."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if here:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all of it on 127.0.0.1
    try:
        import ray
    except ImportError as error:
        raise JobError("--runner ray takes Ray: python scripts/setup.py ray") from error
    daft = daft_module()
    for name in ("ray", "ray._private.worker"):  # Ray may set the first one's again
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what concerns the job is said in one line
    return ray, daft


def _connect(ray: Any, address: str | None) -> None:  # Any: as above
    more = {} if address else {"num_cpus": available_cores(), "object_store_memory": _STORE_BYTES}
    try:
        if address and address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection(
                (host, int(port)), DIAL_S
            ).close()  # Ray would try for minutes, and say so
        ray.init(
            address=address or "local",  # without it, Ray dials a cluster that it finds in the environment
            # Workers import this project: from the same folder, or from one of their PYTHONPATH.
            job_config=ray.job_config.JobConfig(_py_driver_sys_path=[str(ROOT)]),
            include_dashboard=None if address else False,
            configure_logging=False,
            log_to_driver=False,
            **more,
        )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray can't be started here"
        raise JobError(f"{where}: {_line(error)}") from error


def _rows(
    ray: Any,  # Any: as above
    daft: Any,
    address: str | None,
    work: Work,
    numbers: list[int],
) -> Iterator[str | Exception]:
    """What `embedded` says of each part, in the order of `numbers`; at the end, where it can't go on, the reason."""
    try:
        _connect(ray, address)
        yield from _query(ray, daft, work, numbers)
    except Exception as error:  # Daft's and Ray's have no base class in common
        yield error


def _query(ray: Any, daft: Any, work: Work, numbers: list[int]) -> Iterator[str]:  # Any: as above
    daft.set_runner_ray(noop_if_initialized=True)
    # Daft has one process for each of Ray's nodes, and would hand it a part for each of the node's cores at once. The
    # engine uses all cores, and `--per-host` is of one Job: a part asks for all the cores that the smallest node has.
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]

    def row(part: int) -> str:
        return embedded(work, part)

    # A function, not a class: of a class Daft makes an instance for each part, with an engine each.
    udf = daft.func(
        row,
        return_dtype=daft.DataType.string(),
        use_process=False,
        cpus=min((count for count in cores if count), default=1),
    )
    frame = daft.from_pydict({"part": numbers}).into_partitions(len(numbers))
    for batch in frame.select(udf(daft.col("part")).alias("row")).to_arrow_iter(results_buffer_size=None):
        yield from batch["row"].to_pylist()


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
