"""How a command on a folder ends: in one line, whatever is wrong. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in one line, and ends with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removesuffix('.py')}: {printable(message)}\n")


def run(name: str, work: Callable[[], int | None]) -> int:
    """The exit status of a command: what `work` gives, or 0; 2 with one line for what a person can change; 130 after
    Ctrl-C.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        return _failed(name, "interrupted", status=130)
    except MemoryError as error:
        return _failed(name, f"there is not enough memory: {error}")
    except Exception as error:
        # Here, as both take a second to import, and the command has imported them by now.
        from bentoml.exceptions import BentoMLException

        from bulk.errors import JobError
        from embedder.errors import EmbedderError, StartError
        from embedder.settings import SettingError

        if isinstance(
            error, BentoMLException | EmbedderError | JobError | OSError | SettingError | StartError
        ):
            return _failed(name, str(error))
        raise


EXACT_ROWS = 200_000
"""So many rows are compared exactly: 410 MB of vectors of 512."""


def add_common(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what scripts/embed_catalogue.py made")
    parser.add_argument(
        "--exact-rows",
        type=whole,
        default=EXACT_ROWS,
        metavar="N",
        help="more rows than this are compared through a Lance index, which is fast and misses some (%(default)s)",
    )


def whole(text: str) -> int:
    """An argument that is a count: 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def output(text: str) -> Path:
    """An argument that is a file to write: said to be impossible before the work, not behind it."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} can't be written: it is a folder, or is in none")
    return path


def typed(*words: str) -> str:
    """A command of this interpreter with `words`, as a person would type it in this folder, for the same model."""
    python = Path(sys.executable)
    if shutil.which("python") == str(python):
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    model = os.environ.get("EMBEDDER_MODEL")
    chosen = f"EMBEDDER_MODEL={shlex.quote(model)} " if model else ""
    return chosen + shlex.join([str(python), *words])


def say(name: str, text: str) -> None:
    """A line for whoever waits, on stderr."""
    print(f"{name}: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """On one line, and without what a terminal would obey: names and URLs come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _failed(name: str, reason: str, *, status: int = 2) -> int:
    say(name, " ".join(reason.split()))
    return status
