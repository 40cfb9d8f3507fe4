"""A catalogue → a folder of vectors: all that `scripts/embed_catalogue.py` does with its options."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bulk import catalogue
from bulk.catalogue import Catalogue
from bulk.commands import printable, typed
from bulk.errors import JobError
from bulk.files import read_json, remove_leftovers
from bulk.finish import settle, write_errors, write_summary
from bulk.folder import ERRORS, MANIFEST, SUMMARY, Folder, provenance
from bulk.job import Again, AnyJob, Job, Limits, retried, to_do
from bulk.local import LocalEmbedder, settings_from
from bulk.plan import PLAN, Plan, planned
from bulk.progress import BAR_EVERY_S, Progress, clock, most
from bulk.server import ServerEmbedder
from embedder.engine import Engine
from embedder.settings import Settings

DONE, TOO_MANY_FAILED, INTERRUPTED = 0, 3, 130
"""What the command ends with, beside 2 (`commands.run`)."""
TRIAL_ROWS = 100
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Options:
    """What the command takes; its parser has the defaults, and says what each is."""

    input: str
    out: Path
    url_column: str | None
    id_column: str | None
    keep: str
    shard_rows: int
    format: str
    precision: str | None
    concurrency: int
    per_host: int
    limit: int | None
    max_failure_rate: float
    retry_failed: str | None
    """Codes with commas between; empty: those whose cause may pass; None: nothing is repeated."""
    overwrite: bool
    servers: Sequence[str]
    runner: str
    ray_address: str | None
    progress: str
    dry_run: bool
    command: str
    """What was typed, to be typed again."""


def run(options: Options, environ: Mapping[str, str]) -> int:
    """What the command ends with. Raises, for what a person can change, what `commands.run` says in one line."""
    try:
        return _run(options, environ)
    except OSError as error:
        what = "there is no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        where = f" ({error.filename})" if error.filename and error.errno != errno.ENOSPC else ""
        raise JobError(f"{what}{where}; what was done is kept: the same command goes on") from error


def _run(options: Options, environ: Mapping[str, str]) -> int:
    found = _opened(options)
    _say(found.said)
    if options.servers and options.runner == "ray":
        raise JobError("--server and --runner ray don't go together: services embed, or a cluster does")
    settings = None if options.servers else _settings(options, environ)
    if options.dry_run:
        return _tried(options, found, settings, environ)
    with _locked(options.out):
        if options.overwrite:
            _clear(options.out)
        remove_leftovers(options.out)
        remove_leftovers(options.out / PLAN)
        return _on_loop(_embedded(options, found, settings, environ))


def _on_loop(work: Coroutine[None, None, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _opened(options: Options) -> Catalogue:
    return catalogue.opened(
        options.input, url_column=options.url_column, id_column=options.id_column, keep=options.keep
    )


def _settings(options: Options, environ: Mapping[str, str]) -> Settings:
    return settings_from(_words(options, environ), concurrency=options.concurrency)


def _words(options: Options, environ: Mapping[str, str]) -> dict[str, str]:
    return {**environ, **({"EMBEDDER_PRECISION": options.precision} if options.precision else {})}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another job is writing to {folder}") from None
        yield


def _clear(folder: Path) -> None:
    """Of a job's folder all that is the job's."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, what is left is no job's
    for pattern in ("part-*.parquet", "part-*.json", ERRORS, SUMMARY):
        for file in folder.glob(pattern):
            file.unlink()
    for name in (PLAN, "img_emb", "metadata", "embeddings.lance", "_index.lance"):
        shutil.rmtree(folder / name, ignore_errors=True)


async def _embedded(
    options: Options, found: Catalogue, settings: Settings | None, environ: Mapping[str, str]
) -> int:
    if settings is None:
        key = environ.get("EMBEDDER_API_KEYS", "").partition(",")[0].strip() or None
        async with ServerEmbedder(options.servers, key=key, is_files=found.is_files) as server:
            plan = _planned(options, found, server.said, None)
            return await _job(options, plan, partial(Job, plan, server))
    engine = Engine(settings)
    plan = _planned(options, found, provenance(engine.spec), settings)
    if next(to_do(plan, _again(options)), None) is None:  # the network need not be loaded
        return _finished(options, plan, None, time.monotonic())
    if options.runner == "ray":
        from bulk.ray_runner import RayJob

        words = _words(options, environ)
        return await _job(options, plan, partial(RayJob, plan, words, address=options.ray_address))
    async with engine:
        return await _job(options, plan, partial(Job, plan, LocalEmbedder(engine, is_files=plan.is_files)))


def _planned(options: Options, found: Catalogue, said: Mapping[str, str], settings: Settings | None) -> Plan:
    """Raises JobError where there is no space, or the folder is another job's."""
    changing = {} if settings is None else _changing(settings)
    plan, goes_on = planned(
        options.out,
        found,
        said=said,
        part_rows=options.shard_rows,
        limit=options.limit,
        settings=changing,
    )
    if goes_on:
        done = len(Folder(plan.folder).done())
        _say(f"going on: {done} of {plan.parts} parts are done")
    else:
        _say(
            f"{plan.rows} rows in {plan.parts} parts, {plan.copies.shape[1]} of them with a URL that came before"
        )
    _check_space(plan)
    if said["embedder.trained"] != "true":
        _say(
            f"{said['embedder.model']} has untrained weights: its vectors are good for trying this, not for search"
        )
    return plan


def _changing(settings: Settings) -> dict[str, Any]:  # Any: JSON
    """The settings that decide which rows have a vector."""
    return {
        "max_image_bytes": settings.max_image_bytes,
        "max_image_pixels": settings.max_image_pixels,
        "max_redirects": settings.max_redirects,
        "formats": list(settings.formats),
        "allowed_hosts": list(settings.allowed_hosts),
        "allowed_ports": sorted(settings.allowed_ports),
        "allowed_networks": [str(network) for network in settings.allowed_networks],
    }


def _check_space(plan: Plan) -> None:
    left = plan.rows - plan.part_rows * len(Folder(plan.folder).done())
    needed = left * (4 * int(plan.said["embedder.dimension"]) + 200)
    free = shutil.disk_usage(plan.folder).free
    if needed > free:
        raise JobError(
            f"the vectors will take {needed / 1e9:.2g} GB and {plan.folder} has {free / 1e9:.2g} GB free"
        )


def _again(options: Options) -> Again | None:
    if options.retry_failed is None:
        return None
    codes = [code.strip() for code in options.retry_failed.split(",") if code.strip()]
    return retried(codes or None)


async def _job(options: Options, plan: Plan, made: Callable[..., AnyJob]) -> int:
    """`made` is called with what `Job` takes by name."""
    began_s = time.monotonic()
    again = _again(options)
    folder = Folder(plan.folder)
    done = folder.done()
    before = sum(folder.read_stats(number).rows - len(plan.firsts(number)) for number in done)
    progress = Progress(options.progress, rows=plan.rows - plan.copies.shape[1], rows_before=before)
    job: AnyJob = made(
        limits=Limits(options.concurrency, options.per_host, options.max_failure_rate),
        again=again,
        part_done=lambda stats: progress.part_done(stats, job.tally),
    )
    loop = asyncio.get_running_loop()

    def listen_no_more() -> None:
        for signum in _SIGNALS:
            loop.remove_signal_handler(signum)

    def stop() -> None:
        job.stop()
        listen_no_more()  # the next one ends it at once

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, stop)

    async def watch() -> None:
        while progress.has_bar:
            progress.bar(job.tally)
            await asyncio.sleep(BAR_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        whole = await job.run(to_do(plan, again))
    finally:
        watching.cancel()
        progress.clear()
        listen_no_more()
    if job.over_rate:
        rate = job.tally.failures / job.tally.rows
        _say(
            f"stopped: {job.tally.failures} of {job.tally.rows} rows failed ({rate:.1%}), over "
            f"--max-failure-rate {options.max_failure_rate:g}; {most(job.tally.failed)}"
        )
        return TOO_MANY_FAILED
    if not whole:
        _say(f"interrupted after {job.tally.rows} rows; the same command goes on: {options.command}")
        return INTERRUPTED
    return _finished(options, plan, job, began_s)


def _finished(options: Options, plan: Plan, job: AnyJob | None, began_s: float) -> int:
    """What is done once all parts are there, and the last three lines."""
    settle(plan)
    folder = Folder(plan.folder)
    write_errors(folder)
    if options.format != "parquet":
        from bulk.exports import EXPORTS

        EXPORTS[options.format](folder, int(plan.said["embedder.dimension"]))
    seconds = time.monotonic() - began_s
    rows = plan.rows if job is None else job.tally.rows
    summary = write_summary(folder, plan, rows_in_last_run=rows, seconds_of_last_run=round(seconds, 1))
    rate = f", {rows / seconds:.1f} a second" if job is not None and rows else ""
    _say(
        f"{summary['success']} of {summary['rows']} rows have a vector, of {summary['model']} "
        f"({summary['fingerprint']}); {clock(seconds)}{rate}"
    )
    if summary["failed"]:
        _say(
            f"{summary['failed']} failed: {most(summary['errors'])}; they are in {plan.folder / ERRORS}. "
            f"Again, what may pass: {options.command} --retry-failed"
        )
    else:
        _say("none failed")
    _say(f"search: {typed('scripts/search.py', str(plan.folder), '--image', 'URL-OR-FILE')}")
    if summary["failed"] > options.max_failure_rate * summary["rows"]:
        return TOO_MANY_FAILED
    return DONE


def _tried(options: Options, found: Catalogue, settings: Settings | None, environ: Mapping[str, str]) -> int:
    """`--dry-run`: the first rows into a folder that is thrown away, and what all of them would take."""
    rows = sum(len(table) for table in _opened(options).rows(options.limit))
    if not rows:
        raise JobError("the catalogue has no rows")
    with tempfile.TemporaryDirectory() as folder:
        few = replace(
            options,
            out=Path(folder) / "out",
            limit=min(rows, TRIAL_ROWS),
            dry_run=False,
            runner="local",  # the folder is this machine's
            format="parquet",
            max_failure_rate=1.0,
        )
        few.out.mkdir()
        ended = _on_loop(_embedded(few, found, settings, environ))
        if ended != DONE:
            return ended
        summary = read_json(few.out / SUMMARY)
        rate = summary["rows_in_last_run"] / summary["seconds_of_last_run"]
        size = sum(file.stat().st_size for file in few.out.glob("part-*.parquet")) / summary["rows"]
    _say(
        f"dry run: nothing was kept. All {rows} rows would take about {clock(rows / rate)} at {rate:.1f} a second, "
        f"and {rows * size / 1e6:.0f} MB"
    )
    return DONE


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def quiet() -> None:
    """Of libraries only what is a warning or worse."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
