"""One response, as its bytes arrive: interim heads, its head, its body. Pure.

What an origin can make it cost is bounded. Of a body nothing is kept here: each piece is passed on as it comes, to
who counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from httptools import HttpParserError, HttpResponseParser

from embedder.fetch.failures import Broken
from embedder.fetch.head import MAX_HEAD_BYTES, Head, HeadTooLong, head_end

MAX_HEADS = 16
"""Interim ones (1xx) and the real one. Servers send one or two interim ones."""

MAX_FRAMING_BYTES = MAX_HEAD_BYTES
"""What is not body, heads too, beside a sixteenth of the body. Chunks of one byte take a hundred times as long to
parse as the same body in one piece; servers send kilobytes in each, with six bytes around them."""

Receive: TypeAlias = Callable[[bytes], None]
"""Called with each piece of a body."""
Answered: TypeAlias = Callable[[Head], Receive | None]
"""Called with the head that is the answer. None: its body is not wanted."""


class Response:
    """What is fed to it comes in any pieces; `end` is called when the origin closed the connection.

    A body is not wanted where `answered` says so, or where it, or what it returned, raises. What has not come of such
    a body is not worth downloading: the response is over, and not reusable.
    """

    def __init__(self, answered: Answered) -> None:
        self.head: Head | None = None
        self.is_over = False
        self.is_reusable = False
        """Its connection may carry another response: nothing came behind this one."""
        self._answered = answered
        self._receive: Receive | None = None
        self._refusal: Exception | None = None
        self._begun = b""
        """What has come of a head that is not complete yet."""
        self._heads = 0
        self._left = math.inf
        """Bytes of the body that are still to come; infinite: it ends with its chunks, or with the connection."""
        self._chunks: _Chunks | None = None
        self._parser: HttpResponseParser
        self._body_bytes = self._framing_bytes = 0

    def feed(self, data: bytes) -> None:
        """Raises Broken for what is no response, or little but framing; and what `answered`, or its result, raised."""
        while data and self.head is None:
            data = self._feed_head(data)
        if self.head is None:
            return
        try:
            self._feed_body(data)
        except Broken:
            if self._receive is not None:
                raise
        if self._receive is None and not self.is_over:
            self.is_over, self.is_reusable = True, False
        if self._refusal is not None:
            try:
                raise self._refusal
            finally:
                self._refusal = None  # else its traceback would keep it, and the body, alive

    def end(self) -> None:
        """The origin closed the connection, and not by a reset. Raises Broken where something is missing."""
        if self.head is None:
            raise Broken("closed before there was an answer")
        if self._chunks is not None or self._left != math.inf:
            raise Broken("closed in the body")
        self.is_over, self.is_reusable = True, False

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what is behind the head, once that is complete."""
        begun = len(self._begun)
        if begun:
            data = self._begun + data
        else:  # blank lines before a head are none of its
            self._framing_bytes += len(data)
            data = data.lstrip(b"\r\n")
            self._framing_bytes -= len(data)
        end = head_end(data, begun)
        if self._framing_bytes + (end or len(data)) > MAX_FRAMING_BYTES:
            raise HeadTooLong
        if not end:
            self._begun = data
            return b""
        self._begun = b""
        self._framing_bytes += end
        self._heads += 1
        if self._heads > MAX_HEADS:
            raise Broken("more interim answers than a server sends")
        head = Head.of(data[:end])
        if not head.is_interim:
            self._begin_body(head)
        return data[end:]

    def _begin_body(self, head: Head) -> None:
        self.head, self.is_reusable = head, head.keeps
        if head.codings == ("chunked",):
            self._chunks = _Chunks()
            self._parser = HttpResponseParser(self._chunks)
            # As browsers read them: blanks behind a size, a line end without a carriage return, trailers of any kind.
            self._parser.set_dangerous_leniencies(
                lenient_spaces_after_chunk_size=True,
                lenient_optional_cr_before_lf=True,
                lenient_headers=True,
            )
            # `close`: what comes behind the body is an error, and no next response.
            self._parser.feed_data(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        elif head.length is not None:
            self._left = head.length
        try:
            self._receive = self._answered(head)
        except Exception as exc:
            self._refusal = exc

    def _feed_body(self, data: bytes) -> None:
        body = self._counted(data) if self._chunks is None else self._unchunked(self._chunks, data)
        self._body_bytes += len(body)
        self._framing_bytes += len(data) - len(body)
        if not self.is_over and self._framing_bytes > MAX_FRAMING_BYTES + self._body_bytes // 16:
            raise Broken("little but framing")
        if body and self._receive is not None:
            try:
                self._receive(body)
            except Exception as exc:
                self._refusal, self._receive = exc, None

    def _counted(self, data: bytes) -> bytes:
        body = data if len(data) <= self._left else data[: int(self._left)]
        self._left -= len(body)
        self.is_over = not self._left
        self.is_reusable &= len(body) == len(data)
        return body

    def _unchunked(self, chunks: _Chunks, data: bytes) -> bytes:
        try:
            self._parser.feed_data(data)
        except HttpParserError as exc:
            if not chunks.is_over:
                raise Broken(f"chunks that can't be read: {exc}") from exc
            self.is_reusable = False
        self.is_over = chunks.is_over
        body = b"".join(chunks.pieces)
        chunks.pieces.clear()
        return body


class _Chunks:
    """What httptools finds in the body of a chunked response."""

    def __init__(self) -> None:
        self.is_over = False
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append

    def on_message_complete(self) -> None:
        self.is_over = True
