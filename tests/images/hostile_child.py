"""A decoding process whose plugin for GIF does what the file says: crash, hang, fork, open a file."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable

from PIL.ImageFile import ImageFile

from embedder.errors import BadImage
from embedder.images import child, decode


def ordered(action: str, *, side: int = 9) -> bytes:
    """A file that has the plugin do `action`, of `side` x `side` pixels by its header."""
    return b"GIF89a" + struct.pack("<HHxxxB4H", side, side, 0x2C, 0, 0, side, side) + action.encode() + b"."


def main(argument: str) -> None:
    usual = decode.load_plugin
    decode.load_plugin = lambda format: _plugin if format.name == "GIF" else usual(format)
    child.main(argument)


def _plugin(file: io.BytesIO) -> ImageFile:
    action = file.getvalue()[22:].decode().partition(".")[0]
    try:
        _ACTIONS[action]()
    except MemoryError:
        raise
    except BaseException as error:
        raise BadImage(f"{action}: {type(error).__name__}") from error
    raise BadImage(f"{action}: it was done")


def _loop() -> None:
    while True:
        pass


def _take_all_memory() -> None:
    taken = []
    while True:
        taken.append(bytes(50_000_000))


def _say(answer: bytes) -> Callable[[], None]:
    def say() -> None:
        os.write(0, answer)
        _loop()

    return say


_ACTIONS: dict[str, Callable[[], object]] = {
    "crash": lambda: ctypes.string_at(1),
    "exit": lambda: os._exit(0),
    "loop": _loop,
    "wait": lambda: threading.Lock().acquire() and threading.Event().wait(),
    "take all memory": _take_all_memory,
    "recurse": lambda: _ACTIONS["recurse"](),
    "fork": os.fork,
    "exec": lambda: os.execv(sys.executable, [sys.executable]),  # noqa: S606
    "start a thread": lambda: threading.Thread(target=_loop).start(),
    "open a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "write a file": lambda: os.open("/tmp/from-a-decoder", os.O_CREAT | os.O_WRONLY),  # noqa: S108
    "list a folder": lambda: os.listdir("/"),
    "open a socket": socket.socket,
    "connect a pair": socket.socketpair,
    "kill its parent": lambda: os.kill(os.getppid(), 9),
    "copy a descriptor": lambda: os.dup(0),
    "answer nonsense": _say(b"nonsense"),
    "answer half": _say(b'{"format": "GIF"}'),
    "answer a list": _say(b"[1]"),
    "answer a huge size": _say(b'{"format": "GIF", "width": 1e999, "height": 1}'),
}
