"""The child processes that decode, and whose turn it is. For one event loop.

    file ─► its turn ─► shared memory ─► child ─► pixels, or an error
                                          └ dies, or takes too long: its picture is a bad image, another child starts

Turns go by arrival. One large picture is decoded at a time, where there are several children: it has three quarters
of the memory, and never the last free child, so small pictures go past it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedder
from embedder.errors import (
    BadImage,
    EmbedderError,
    InternalError,
    Overloaded,
    StartError,
    TooManyPixels,
    megabytes,
)
from embedder.images.child import MAX_ANSWER_BYTES, READY, TASK, Job
from embedder.images.formats import HEAD_BYTES, Format, check_pixels, recognised, stated_size
from embedder.metrics.measures import Metrics
from embedder.model.spec import Preprocessing

logger = logging.getLogger(__name__)

PROGRAM = "from embedder.images.child import main"
"""What gives a child its `main`."""

START_S = 60.0
RETRY_S = 1.0

BYTES_PER_PIXEL = 20
"""While a picture is decoded, at most, but for odd ones. WebP takes 16, PNG up to 12, AVIF 9, a photo's JPEG 1 to 4."""
PICTURE_BYTES = 16_000_000
"""The memory for a picture, beside that."""

MAX_LARGE_WAITING = 32
"""The largest take a second or two each, one after the other."""

KEPT_BYTES = 4_000_000
"""Of shared memory, between two pictures. Giving all of it back each time would cost a large photo 1 %."""


@dataclass(frozen=True)
class Room:
    """What all children may take, and a picture of it."""

    count: int
    memory_bytes: int
    timeout_s: float
    max_pixels: int

    @property
    def small_bytes(self) -> int:
        return self.memory_bytes // 4 // (self.count - 1) if self.count > 1 else self.memory_bytes

    @property
    def large_bytes(self) -> int:
        return self.memory_bytes - (self.count - 1) * self.small_bytes

    def is_large(self, pixels: int) -> bool:
        return PICTURE_BYTES + BYTES_PER_PIXEL * pixels > self.small_bytes

    def cpu_s(self, pixels: int) -> int:
        """Two seconds, and the rest in proportion: a small picture that is built to cost seconds is stopped early."""
        return math.ceil(min(self.timeout_s, 2 + self.timeout_s * pixels / self.max_pixels))


@dataclass(eq=False)
class File:
    """An image's file."""

    data: bytes
    """Empty once it is in a child's memory: nothing else ought to keep it."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What a child made of a file."""

    pixels: NDArray[np.uint8]
    """uint8 (crop, crop, 3), RGB."""
    format: str
    width: int
    """Of the source, upright, in pixels, as `height`."""
    height: int
    waited_s: float
    took_s: float


@dataclass(eq=False)
class _Turn:
    """A file that is to be decoded, or that is being decoded."""

    file: File
    pixels: int
    """By its header, or as many as there may be."""
    large: bool
    picture: asyncio.Future[Picture]
    came_s: float
    """On the event loop's clock, as `began_s`."""
    began_s: float = 0.0
    file_bytes: int = 0


@dataclass(eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    memory: mmap.mmap
    turn: _Turn | None = None
    timer: asyncio.TimerHandle | None = None
    late: bool = False

    def end(self) -> None:
        self.process.kill()
        self.channel.close()
        if self.timer is not None:
            self.timer.cancel()


class Decoders:
    """Make it anywhere; start it, use it and close it on one event loop."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        room: Room,
        formats: Collection[Format],
        max_file_bytes: int,
        metrics: Metrics,
        program: str = PROGRAM,
    ) -> None:
        self.room = room
        self.formats = tuple(formats)
        self._crop = preprocessing.crop
        self._pixel_bytes = 3 * preprocessing.crop**2
        self._memory_bytes = self._pixel_bytes + max_file_bytes
        self._metrics = metrics
        names = [format.name for format in formats]
        job = Job(asdict(preprocessing), names, room.max_pixels, self._pixel_bytes)
        # Isolated from the environment and from the folder that it is started in, not from where packages are.
        # BentoML's command has this one in its path only while it imports the service.
        path = [str(Path(embedder.__file__).parent.parent), *(folder for folder in sys.path if folder)]
        start = f"import sys; sys.path[:] = {path!r}; {program}; main(sys.argv[1])"
        self._command = [sys.executable, "-I", "-c", start, json.dumps(asdict(job))]
        self._waiting: deque[_Turn] = deque()
        self._all: set[_Child] = set()
        """Those whose processes are not waited for yet."""
        self._children: set[_Child] = set()
        """Those that may have a turn, and that listen."""
        self._idle: list[_Child] = []
        self._last_was_large = False
        self._can_start = True
        self._replacing: set[asyncio.Task[None]] = set()
        self._starters: ThreadPoolExecutor

    @property
    def process_ids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    def check(self) -> None:
        """Raises StartError when a child can't be started."""
        self._started()
        self._end_children()

    async def start(self) -> None:
        """Raises StartError as `check` does."""
        self._starters = ThreadPoolExecutor(self.room.count, thread_name_prefix="decoders")
        loop = asyncio.get_running_loop()
        starting = [loop.run_in_executor(self._starters, self._started) for _ in range(self.room.count)]
        await asyncio.wait(starting)
        for child in starting:
            if child.exception() is None:
                self._add(child.result())
        for child in starting:
            if failure := child.exception():
                await self.close()
                raise failure

    async def close(self) -> None:
        for task in self._replacing:
            task.cancel()
        for child in self._children:
            asyncio.get_running_loop().remove_reader(child.channel)
        await asyncio.to_thread(self._end_all)

    def _end_all(self) -> None:
        self._starters.shutdown(cancel_futures=True)
        self._end_children()

    def _end_children(self) -> None:
        for child in self._all:
            child.end()
            child.process.wait()
        self._all.clear()

    async def decode(self, file: File) -> Picture:
        """The picture in `file`, whose data are let go when its turn has come.

        Raises UnsupportedFormat and TooManyPixels by the file's first bytes, at once; BadImage; Overloaded.
        """
        size = stated_size(recognised(file.data[:HEAD_BYTES], self.formats), file.data)
        check_pixels(size, self.room.max_pixels)
        pixels = self.room.max_pixels if size is None else size[0] * size[1]
        large = self.room.is_large(pixels)
        if large and sum(turn.large for turn in self._waiting) >= MAX_LARGE_WAITING:
            raise Overloaded(f"{MAX_LARGE_WAITING} large images wait to be decoded")
        if not (self._children or self._can_start):
            raise Overloaded(_NO_CHILD)
        loop = asyncio.get_running_loop()
        turn = _Turn(file, pixels, large, loop.create_future(), loop.time())
        self._waiting.append(turn)
        self._give_turns()
        try:
            return await turn.picture
        finally:
            file.data = b""  # it may have been given up before its turn

    def _give_turns(self) -> None:
        while self._idle and (turn := self._next()) is not None:
            self._begin(self._idle.pop(), turn)

    def _next(self) -> _Turn | None:
        """The first that may have its turn. A large one waits for another; with one child, for a small one."""
        small_wait = any(not turn.large for turn in self._waiting)
        if self.room.count == 1:
            large_may = not (self._last_was_large and small_wait)
        else:
            large_may = not any(child.turn is not None and child.turn.large for child in self._children)
        for turn in tuple(self._waiting):
            if turn.picture.done():  # it was given up
                self._waiting.remove(turn)
            elif large_may or not turn.large:
                self._waiting.remove(turn)
                return turn
        return None

    def _begin(self, child: _Child, turn: _Turn) -> None:
        loop = asyncio.get_running_loop()
        data, turn.file.data = turn.file.data, b""
        turn.file_bytes = len(data)
        child.memory[self._pixel_bytes : self._pixel_bytes + len(data)] = data
        turn.began_s = loop.time()
        child.turn = turn
        self._last_was_large = turn.large
        room = self.room
        # The child's own clock is a second behind: it counts where there is nobody to stop it any more.
        task = TASK.pack(
            len(data),
            room.large_bytes if turn.large else room.small_bytes,
            room.cpu_s(turn.pixels),
            math.ceil(room.timeout_s) + 1,
        )
        child.timer = loop.call_later(room.timeout_s, self._is_late, child)
        with suppress(OSError):  # it has just died, which `_answered` is told
            child.channel.send(task)

    def _is_late(self, child: _Child) -> None:
        child.late = True
        child.process.kill()

    def _answered(self, child: _Child) -> None:
        """A child has said something, or has died."""
        try:
            message = child.channel.recv(MAX_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        turn = child.turn
        if not message or turn is None or child.timer is None or child.late:
            self._lose(child)  # also where an answer came as it was ended: the next picture would be blamed
            return
        try:
            outcome: Picture | EmbedderError | None = self._outcome(child, turn, json.loads(message))
        except MemoryError:  # what other images hold is about to be freed
            outcome = Overloaded("there is no memory for the image now")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            self._lose(child)
            return
        child.timer.cancel()
        child.turn = None
        if turn.file_bytes > KEPT_BYTES:
            first = -(-(self._pixel_bytes + KEPT_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
            child.memory.madvise(mmap.MADV_REMOVE, first)
        if outcome is None:
            turn.large = True
            self._waiting.appendleft(turn)
        elif not turn.picture.done():  # otherwise it was given up
            if isinstance(outcome, Picture):
                turn.picture.set_result(outcome)
            else:
                turn.picture.set_exception(outcome)
        self._idle.append(child)
        self._give_turns()

    def _outcome(self, child: _Child, turn: _Turn, answer: dict[str, Any]) -> Picture | EmbedderError | None:
        """What a child's `answer` means; None where a small picture takes more memory than a small one gets.

        Raises what malformed answers raise: no child gives one unless a file rules it.
        """
        waited_s = turn.began_s - turn.came_s
        took_s = asyncio.get_running_loop().time() - turn.began_s
        self._metrics.decode_queue_stage.observe(waited_s)
        self._metrics.decode_stage.observe(took_s)
        match answer.get("code"):
            case None:
                pixels = np.frombuffer(child.memory[: self._pixel_bytes], np.uint8)
                width, height, format = int(answer["width"]), int(answer["height"]), str(answer["format"])
                return Picture(
                    pixels.reshape(self._crop, self._crop, 3), format, width, height, waited_s, took_s
                )
            case "memory" if not turn.large and self.room.count > 1:
                turn.file.data = child.memory[self._pixel_bytes : self._pixel_bytes + turn.file_bytes]
                return None
            case "memory":
                limit = megabytes(self.room.large_bytes)
                return BadImage(f"decoding the image takes more than {limit} of memory")
            case "too_many_pixels":
                width, height = int(answer["width"]), int(answer["height"])
                return TooManyPixels(width=width, height=height, limit_pixels=self.room.max_pixels)
            case "bug":
                logger.error("an image failed in a way that was not foreseen: %s", answer["text"])
                return InternalError()
            case _:
                return BadImage(str(answer["text"]))

    def _lose(self, child: _Child) -> None:
        """A child has died, or has said what none says: its picture is to blame, and another takes its place."""
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        asyncio.get_running_loop().remove_reader(child.channel)
        child.end()
        task = asyncio.get_running_loop().create_task(self._replace(child))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, lost: _Child) -> None:
        loop = asyncio.get_running_loop()
        status = await loop.run_in_executor(self._starters, lost.process.wait)
        self._all.discard(lost)
        used_up = status in (-signal.SIGXCPU, -signal.SIGALRM)
        self._metrics.decoders_lost.labels("time" if lost.late or used_up else "death").inc()
        logger.warning("a decoding process ended with %s", status)
        if lost.turn is not None and not lost.turn.picture.done():
            why = "ended the process that did it"
            if lost.late:
                why = f"took longer than {self.room.timeout_s:g} s"
            elif used_up:
                why = f"took longer than {self.room.cpu_s(lost.turn.pixels)} s of processor time"
            lost.turn.picture.set_exception(BadImage(f"decoding the image {why}"))
        while True:
            try:
                self._add(await loop.run_in_executor(self._starters, self._started))
                return
            except StartError as error:
                logger.error("%s", error)
                self._can_start = False
            for turn in () if self._children else tuple(self._waiting):
                if not turn.picture.done():
                    turn.picture.set_exception(Overloaded(_NO_CHILD))
            await asyncio.sleep(RETRY_S)

    def _add(self, child: _Child) -> None:
        self._can_start = True
        self._children.add(child)
        self._idle.append(child)
        asyncio.get_running_loop().add_reader(child.channel, self._answered, child)
        self._give_turns()

    def _started(self) -> _Child:
        """Blocks until a child is ready: 0.2 s. Raises StartError."""
        try:
            child = self._popen()
        except OSError as error:
            raise StartError(f"a decoding process can't be started: {error.strerror}") from error
        child.channel.settimeout(START_S)
        try:
            said = child.channel.recv(MAX_ANSWER_BYTES)
        except TimeoutError:
            said = b"it does not answer"
        if said != READY:
            child.end()
            _, why = child.process.communicate()
            self._all.discard(child)
            last = (said or why).decode(errors="replace").strip().rpartition("\n")[2]
            raise StartError(f"a decoding process can't be started: {last or 'it ended'}")
        child.channel.setblocking(False)
        if child.process.stderr is not None:
            child.process.stderr.close()
        return child

    def _popen(self) -> _Child:
        with ExitStack() as opened:
            file = os.memfd_create("decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            opened.callback(os.close, file)
            os.ftruncate(file, self._memory_bytes)
            # Without the seals a child could make it shorter, and reading it would end this process.
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = mmap.mmap(file, self._memory_bytes)
            ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own program
                self._command,
                stdin=theirs.fileno(),
                stdout=file,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which still has work
            )
            child = _Child(process, ours.dup(), memory)
            self._all.add(child)
            return child


_NO_CHILD = "no process can be started now that would decode the image"
