"""An origin that speaks Cloudinary's grammar and really resizes, with Pillow.

with Cloudinary() as cdn:
    cdn.put("folder/cat.jpg", cat)
    requests.get(cdn.url("/demo/image/upload/c_limit,w_1024,h_1024,f_jpg,q_90/v1/folder/cat.jpg"))
"""

from __future__ import annotations

import asyncio
import io
import re
from dataclasses import dataclass, field

from PIL import Image

from tests.origin import Origin, Request

_HEAD = "HTTP/1.1 {} Status\r\nContent-Length: {}\r\n{}\r\n"


@dataclass
class Cloudinary(Origin):
    """Of one cloud, "demo". Pictures are found by their whole public id: one that was changed is not there."""

    pictures: dict[str, bytes] = field(default_factory=dict)
    refuses: int = 0
    """The status of whatever is transformed; 0: it is made."""
    sends: bytes | None = None
    """Of whatever is transformed, instead of the picture."""

    def put(self, public_id: str, file: bytes) -> str:
        """Its original's URL."""
        self.pictures[public_id] = file
        return self.url(f"/demo/image/upload/v1/{public_id}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made: dict[str, bytes] = {}

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    async def otherwise(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        status, body, more = self._said(request.path.partition("?")[0])
        writer.write(_HEAD.format(status, len(body), more).encode() + body)
        await writer.drain()
        return True

    def _said(self, path: str) -> tuple[int, bytes, str]:
        steps: list[str] = []
        public_id = path.removeprefix("/demo/image/upload/")
        while public_id not in self.pictures and "/" in public_id:
            step, _, public_id = public_id.partition("/")
            if not re.fullmatch("v[0-9]+", step):
                steps.append(step)
        if public_id not in self.pictures:
            return 404, b"", ""
        original = self.pictures[public_id]
        if not steps:
            return 200, original, ""
        if self.refuses:
            return self.refuses, b"", "X-Cld-Error: not allowed\r\n"
        if self.sends is not None:
            return 200, self.sends, ""
        made = self._made.get(path)  # as a CDN keeps what it has made
        if made is None:
            try:
                made = self._made[path] = _made(original, steps)
            except ValueError as error:
                return 400, b"", f"X-Cld-Error: {error}\r\n"
        return 200, made, f'Server-Timing: content-info;desc="bytes={len(made)},obytes={len(original)}"\r\n'


def _made(original: bytes, steps: list[str]) -> bytes:
    """Raises ValueError for what is no step."""
    image: Image.Image = Image.open(io.BytesIO(original)).convert("RGB")
    format, quality = "JPEG", 80
    for step in steps:
        options = dict(part.split("_", 1) for part in step.split(","))
        width, height = int(options.pop("w", image.width)), int(options.pop("h", image.height))
        match options.pop("c", "scale"):
            case "limit":
                image.thumbnail((width, height), Image.Resampling.LANCZOS)
            case "scale":
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            case "crop":
                left, top = (image.width - width) // 2, (image.height - height) // 2
                image = image.crop((left, top, left + width, top + height))
            case other:
                raise ValueError(f"c_{other}")
        format = {"jpg": "JPEG", "png": "PNG"}[options.pop("f", "jpg")]
        quality = int(options.pop("q", quality))
        if options:
            raise ValueError(str(options))
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return file.getvalue()
