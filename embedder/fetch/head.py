"""The head of a response, as browsers read it. Pure.

Servers get much wrong that shows a picture in every browser: a version that does not exist, lines that are no
field, blanks before colons, a length that is stated twice or is no number, a Transfer-Encoding that is none.
Only what tells where the body ends must be read in one way: who reads it in another gets a part of one response
for the next. So a connection on which that was not said plainly carries no other response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from embedder.fetch.failures import Broken

MAX_FIELD_BYTES = 65_536
"""Content-Security-Policy and Link have ten thousand bytes and more; servers allow 64 kB in all."""
MAX_FIELDS = 1000
MAX_HEAD_BYTES = 131_072

_BLANK_LINE = re.compile(rb"\n\r?\n")
_FOLDED = re.compile(r"\r?\n[ \t]++(?=[^\r\n])")
_STATUS_LINE = re.compile(r"http/([0-9](?:\.[0-9]+)?)[ \t]*([0-9]{3})(?![0-9])", re.IGNORECASE)
_FIELD = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+:([^\r\n]*+)\r?$", re.MULTILINE)
_NO_CODINGS = ("", "identity", "none", "binary")
_MAX_LENGTH_DIGITS = 19  # of 64 bits


class HeadTooLong(Broken):
    def __init__(self) -> None:
        text = (
            f"the image's server answered with too long a head: over {MAX_FIELD_BYTES} bytes in a field, "
            f"{MAX_FIELDS} fields, or {MAX_HEAD_BYTES} bytes in all"
        )
        super().__init__(text, text=text)


class Fields(Mapping[str, str]):
    """The fields of a head by their names, whose case does not matter. Of a repeated one, the first value."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in fields:
            self._values.setdefault(name.lower(), []).append(value.strip(" \t"))

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def all(self, name: str) -> list[str]:
        """Every value of a field that may be repeated."""
        return self._values.get(name.lower(), [])

    def items_of(self, name: str) -> list[str]:
        """The items of a field that is a comma-separated list, in lower case."""
        items = [item.strip(" \t") for value in self.all(name) for item in value.split(",")]
        # Some letters beyond ASCII are an ASCII letter in lower case.
        return [item.lower() if item.isascii() else item for item in items if item]


@dataclass(frozen=True)
class Head:
    status: int
    fields: Fields
    codings: tuple[str, ...]
    """How the body is sent: ("chunked",), usually none; others are not known here."""
    length: int | None
    """Of the body; None: it ends with its chunks, or with the connection."""
    keeps: bool
    """The connection may carry another response."""

    @classmethod
    def of(cls, data: bytes) -> Head:
        """`data` ends with its blank line. Raises Broken where it is no head, and HeadTooLong."""
        if data.count(b"\n") > MAX_FIELDS + 2:  # before anything is done with each of them
            raise HeadTooLong
        text = _FOLDED.sub(" ", data.decode("utf-8", "surrogateescape"))
        if len(text) > MAX_FIELD_BYTES and max(map(len, text.split("\n"))) > MAX_FIELD_BYTES:
            raise HeadTooLong
        status_line = _STATUS_LINE.match(text)
        if status_line is None or "\0" in text:
            raise Broken("the head of the answer can't be read")
        version, status = status_line.groups()
        fields = Fields(_FIELD.findall(text))
        said = fields.items_of("Transfer-Encoding")
        codings = tuple(dict.fromkeys(coding for coding in said if coding not in _NO_CODINGS))
        lengths = fields.items_of("Content-Length")
        length = None if codings else _length(lengths)
        is_plain = [*said, *lengths] in (["chunked"], [str(length)])
        wishes = fields.items_of("Connection")
        keeps = "close" not in wishes and (version != "1.0" or "keep-alive" in wishes)
        return cls(int(status), fields, codings, length, keeps and is_plain and int(status) >= 200)

    @property
    def is_interim(self) -> bool:
        """Another head follows. Not behind 101, which was not asked for."""
        return 100 <= self.status < 200 and self.status != 101


def head_end(data: bytes, searched: int = 0) -> int:
    """How long the head is at the beginning of `data`, in which no blank line ends before `searched`; 0: longer.

    Raises Broken for what does not begin like one.
    """
    blank_line = _BLANK_LINE.search(data, max(0, searched - 2))
    if blank_line is None and data[:5].lower() != b"http/"[: len(data)]:
        raise Broken("the answer is not HTTP")
    return 0 if blank_line is None else blank_line.end()


def _length(stated: list[str]) -> int | None:
    lengths = {length for length in stated if length.isascii() and length.isdecimal()}
    if len(lengths) > 1 or any(len(length) > _MAX_LENGTH_DIGITS for length in lengths):
        raise Broken("the answer has several lengths, or one that is beyond 64 bits")
    return int(lengths.pop()) if lengths else None
