"""Pictures of rows: fetched and decoded by the engine, behind all its guards, and drawn on sheets of our own.

Nobody's file is opened here: what Pillow gets are pixels.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from bentoml.exceptions import BentoMLException
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bulk.commands import printable
from bulk.errors import JobError
from bulk.vectors import Stored
from embedder.engine import Engine, Source
from embedder.errors import EmbedderError, InvalidRequest
from embedder.settings import Settings

Picture: TypeAlias = NDArray[np.uint8] | EmbedderError
"""What the network sees, uint8 (crop, crop, 3), RGB; or why there is none."""

COLUMNS = 5
MARGIN = 8
CAPTION = 40
"""Pixels for two lines below a picture."""
THUMBNAIL = 112
"""Both sides, in pixels: 4 kB as a JPEG."""
_FONT_SIZE = 13


def engine_for(stored: Stored) -> Engine:
    """One whose vectors may be compared with the folder's, with the settings of the environment.

    The model is the one that the folder names, where this store has it, else the one of EMBEDDER_MODEL. Raises
    JobError where neither has the folder's fingerprint, and SettingError and BentoMLException in one line.
    """
    engine = _engine_of_environment(stored.precision, stored.renditions)
    try:
        named = Engine(replace(engine.settings, model=stored.model))
        if named.spec.fingerprint == stored.fingerprint:
            return named
    except (BentoMLException, ValueError):  # it was made elsewhere, or is deleted
        pass
    if engine.spec.fingerprint != stored.fingerprint:
        raise JobError(
            f"{stored.folder.path} has vectors of {stored.model}, fingerprint {stored.fingerprint}, and the model "
            f"here is {engine.spec.tag}, fingerprint {engine.spec.fingerprint}: they can't be compared; "
            "EMBEDDER_MODEL names another"
        )
    return engine


def any_engine(stored: Stored) -> Engine:
    """One that decodes: `engine_for`'s, or that of the environment where the folder's model is not here."""
    try:
        return engine_for(stored)
    except (BentoMLException, JobError):
        return _engine_of_environment("fp32", ())


def _engine_of_environment(precision: str, renditions: tuple[str, ...]) -> Engine:
    settings = Settings.from_environ(os.environ)
    # Known embeddings come without pixels, and one process works here, not a server's workers.
    return Engine(replace(settings, precision=precision, renditions=renditions, cache_entries=0))


@contextmanager
def started(engine: Engine) -> Iterator[asyncio.Runner]:
    """What runs the engine's coroutines, from one thread. Between them Ctrl-C ends whatever computes, at once."""
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            yield runner
        finally:
            runner.run(engine.close())


def source(place: str, max_bytes: int) -> Source:
    """What the engine takes for a URL or the path of a file; of a file at most one byte over `max_bytes`."""
    if re.match(r"[a-z][a-z0-9+.-]*://|data:", place, re.IGNORECASE):
        return place
    try:
        if not Path(place).is_file():  # a pipe or device would be read without end
            return InvalidRequest(f"there is no file {place}")
        with open(place, "rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return InvalidRequest(f"{place} can't be read: {getattr(error, 'strerror', None) or error}")


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """THUMBNAIL x THUMBNAIL of them."""
    file = io.BytesIO()
    Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL)).save(file, "JPEG", quality=80)
    return file.getvalue()


def sheet(cells: Sequence[tuple[Picture, str, str]], side: int) -> bytes:
    """A PNG of pictures, each `side` x `side` with its two lines below it, COLUMNS in a row, MARGIN around each."""
    across, down = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
    wide, high = side + MARGIN, side + CAPTION + MARGIN
    image = Image.new("RGB", (across * wide + MARGIN, down * high + MARGIN), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, (picture, *lines) in enumerate(cells):
        left, top = MARGIN + number % COLUMNS * wide, MARGIN + number // COLUMNS * high
        if isinstance(picture, EmbedderError):
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill="lightgrey")
            _write(draw, (left + 4, top + 4), str(picture), side - 8, font, lines=side // 20)
        else:
            image.paste(Image.fromarray(picture), (left, top))
        for line, text in enumerate(lines):
            _write(draw, (left, top + side + 2 + line * CAPTION // 2), text, side, font)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    lines: int = 1,
) -> None:
    """As much of `text` as `lines` of `width` pixels hold."""
    left, top = at
    text = printable(" ".join(text[:500].split()))
    for line in range(lines):
        end = len(text)
        while draw.textlength(text[:end], font) > width:
            end -= 1
        draw.text((left, top + line * CAPTION // 2), text[:end], "black", font)
        text = text[end:]
