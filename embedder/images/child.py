"""A decoding process: files in, pixels or errors out, one at a time. `decoders.py` starts it and talks to it.

    descriptor 0: a socket     ─► a task, a message     ◄─ an answer, a message
    descriptor 1: shared memory   pixels, then the file
    descriptor 2: why it can't start

It serves until the other side closes the socket. It trusts nobody with what it has: no environment, no files, no
network, so much memory and time for each picture. What a file does to it stays in it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from embedder.errors import RequestError, TooManyPixels
from embedder.images import sandbox
from embedder.images.decode import Decoded, decode, load_plugin, prepare_pillow
from embedder.images.formats import named
from embedder.model.spec import Preprocessing
from embedder.runtime.memory import keep_freed_memory
from embedder.runtime.threads import NICENESS

TASK = struct.Struct("=QQII")
"""The file's size, the memory for it in bytes; processor time and time for it in seconds."""

READY = b"ready"
MAX_ANSWER_BYTES = 16_384


@dataclass(frozen=True)
class Job:
    """What a child is started for, as JSON in its first argument."""

    preprocessing: dict[str, Any]  # Any: JSON
    formats: list[str]
    max_pixels: int
    pixel_bytes: int


def main(argument: str) -> None:
    """Serves until there is nobody to serve."""
    channel = socket.socket(fileno=0)
    job = Job(**json.loads(argument))
    memory = mmap.mmap(1, os.fstat(1).st_size)
    os.close(1)
    read = partial(
        decode,
        preprocessing=Preprocessing(**job.preprocessing),
        formats=named(job.formats),
        max_pixels=job.max_pixels,
    )
    mapped = _prepared(job)
    channel.send(READY)
    while task := channel.recv(TASK.size):
        size, allowance, cpu_s, wall_s = TASK.unpack(task)
        sandbox.limit_picture(address_space=mapped + allowance, cpu_s=cpu_s, wall_s=wall_s)
        answer = _answer(read, memory, job.pixel_bytes, size)
        sandbox.limit_picture(address_space=mapped + allowance, cpu_s=cpu_s, wall_s=0)
        channel.send(answer)


def _prepared(job: Job) -> int:
    """The address space of this process, which can do nothing any more but decode."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the service lets it finish what is in work
    keep_freed_memory()
    prepare_pillow()
    for format in named(job.formats):
        load_plugin(format)
    threads = "HEIC" in job.formats  # libheif starts some for any picture
    Image.MAX_IMAGE_PIXELS = job.max_pixels  # for pictures within pictures
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with suppress(OSError):
        os.nice(NICENESS)
    mapped = sandbox.mapped_bytes()
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)  # whoever started this process has read what was said until now
    sandbox.close_doors(threads=threads)
    sandbox.filter_calls(threads=threads)
    return mapped


def _answer(read: Callable[[bytes], Decoded], memory: mmap.mmap, pixel_bytes: int, size: int) -> bytes:
    try:
        picture = read(memory[pixel_bytes : pixel_bytes + size])
        memory[:pixel_bytes] = picture.pixels
        answer: dict[str, Any] = {"format": picture.format, "width": picture.width, "height": picture.height}
    except TooManyPixels as error:
        answer = {"code": error.code, "width": error.width, "height": error.height}
    except RequestError as error:
        answer = {"code": error.code, "text": str(error)}
    except MemoryError:
        answer = {"code": "memory"}
    except Exception:
        answer = {"code": "bug", "text": traceback.format_exc()[-4000:]}
    return json.dumps(answer).encode()
