"""A request's body: read once, within limits of bytes and time; as it is, as JSON, or as the parts of a form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from embedder.errors import BodyTooLarge, ImageTooLarge, InvalidRequest
from embedder.runtime.byte_budget import Lease

# A body that arrives a byte at a time would otherwise hold its request open without end.
BODY_TIMEOUT_S = 15.0
BODY_BYTES_PER_S = 500_000
"""So fast it must come beyond that: 20 MB in 55 s."""
# python-multipart writes a line for each form that is none, so clients could fill the log.
_SILENT = logging.Logger("python_multipart", logging.CRITICAL)


def media_type(headers: Mapping[str, str]) -> str:
    """That of a body, in lower case, without parameters; "" where there is none."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


@dataclass(eq=False)
class Part:
    """A field of a form."""

    name: str
    data: bytes = b""


@dataclass(eq=False)
class Body:
    """Call one of `whole`, `json` and `parts`; `json` may be called again.

    Each raises BodyTooLarge, Overloaded, and InvalidRequest, also when the body takes longer to come than
    BODY_TIMEOUT_S and a second more for each BODY_BYTES_PER_S.
    """

    _request: Request
    _lease: Lease
    """Counts the bytes as they arrive."""
    max_bytes: int
    max_json_values: int
    max_file_bytes: int
    max_files: int
    _json: Any = field(default=None, init=False)  # Any: JSON

    @property
    def headers(self) -> Mapping[str, str]:
        return self._request.headers

    @property
    def media_type(self) -> str:
        return media_type(self.headers)

    async def whole(self) -> bytes:
        # The system moves its memory when it grows. Many chunks would be scattered over the heap.
        content = bytearray()
        async for chunk in self._chunks():
            content += chunk
        return bytes(content)

    async def json(self) -> dict[str, Any]:  # Any: JSON
        """The JSON object that it is."""
        if self._json is None:
            self._json = json_object(await self.whole(), max_values=self.max_json_values)
        content: dict[str, Any] = self._json
        return content

    async def parts(self) -> list[Part]:
        """The fields of a form, multipart/form-data as in RFC 7578, in order.

        Raises ImageTooLarge as soon as one is over `max_file_bytes`, and InvalidRequest for more than `max_files`,
        beside 16 others.
        """
        _, parameters = parse_options_header(self.headers.get("Content-Type"))
        form = _Form(self.max_file_bytes, self.max_files + 16)
        try:
            parser = MultipartParser(
                parameters.get(b"boundary", b""),
                {
                    "on_part_begin": form.begin,
                    "on_header_field": form.header_field,
                    "on_header_value": form.header_value,
                    "on_header_end": form.end_header,
                    "on_headers_finished": form.end_headers,
                    "on_part_data": form.add,
                    "on_part_end": form.end,
                    "on_end": form.finish,
                },
            )
            parser.logger = _SILENT
            async for chunk in self._chunks():
                parser.write(chunk)
            parser.finalize()
        except FormParserError as error:
            raise InvalidRequest(f"the body is not a form: {error}") from error
        if not form.finished:
            raise InvalidRequest(
                "the body is a form that is cut short, or without the boundary that it names"
            )
        return form.parts

    async def _chunks(self) -> AsyncIterator[bytes]:
        declared = self.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise BodyTooLarge(limit_bytes=self.max_bytes, actual_bytes=int(declared))
        length = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as timeout:
                async for chunk in self._request.stream():
                    length += len(chunk)
                    timeout.reschedule((timeout.when() or 0.0) + len(chunk) / BODY_BYTES_PER_S)
                    if length > self.max_bytes:
                        raise BodyTooLarge(limit_bytes=self.max_bytes)
                    self._lease.add(len(chunk))
                    yield chunk
        except TimeoutError:
            raise InvalidRequest(
                f"the body did not arrive within {BODY_TIMEOUT_S:g} s, or slower than {BODY_BYTES_PER_S // 1000} kB/s"
            ) from None
        except ClientDisconnect:
            raise InvalidRequest("the client went away before its body was complete") from None


class _Form:
    """What a parser of multipart bodies calls. It bounds the heads of parts by itself: 8 fields of 4 kB together."""

    def __init__(self, max_bytes: int, max_parts: int) -> None:
        self._max_bytes = max_bytes
        self._max_parts = max_parts
        self.parts: list[Part] = []
        self.finished = False

    def begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise InvalidRequest(f"the form has over {self._max_parts} fields")
        self._field, self._value, self._head = b"", b"", dict[bytes, bytes]()
        # Not a list of pieces: of a body sent byte by byte that would take 60 times its memory.
        self._data = bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._head[self._field.lower()] = self._value
        self._field = self._value = b""

    def end_headers(self) -> None:
        _, said = parse_options_header(self._head.get(b"content-disposition"))
        self.parts.append(Part(said.get(b"name", b"").decode(errors="replace")))

    def add(self, data: bytes, start: int, end: int) -> None:
        if len(self._data) + end - start > self._max_bytes:
            raise ImageTooLarge(limit_bytes=self._max_bytes)
        self._data += memoryview(data)[start:end]

    def end(self) -> None:
        self.parts[-1].data = bytes(self._data)
        self._data.clear()

    def finish(self) -> None:
        self.finished = True


def json_object(body: bytes, *, max_values: int) -> dict[str, Any]:  # Any: JSON
    """The JSON object in `body`. Raises InvalidRequest.

    What is parsed takes up to 24 times the memory of its text: 32 MB of "[],[],[]" take 770 MB. Each value is
    the first of an array or an object, or follows a comma: there may be `max_values` of these characters.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > max_values:
        raise InvalidRequest(
            f"the body has over {max_values} commas and brackets, more than its URLs can have"
        )
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object")
    return content
