"""The URL of a picture → the URL of a smaller one of it, where a CDN makes those. Pure: nothing is fetched.

The network sees a square of some hundred pixels. A CDN that resizes sends 0.1 MB for it instead of 2. `CDNS` is the
table: how a URL of each is recognised, how it is rewritten, and when it is left as it is. What all of them keep to:

- The picture is the same, whole and not enlarged. A URL that crops, pads or draws is left alone, unless the CDN
  takes one step after another (Cloudinary's), and so is a signed one.
- Its shorter side keeps SHORT_SIDE pixels for a network that sees 224, and as many more for one that sees more. A
  URL can only bound the longer side, at twice that. A picture that is longer still comes out too small, which
  `Rendition.is_enough` finds: its original is to be fetched.
- It has the same scheme, host and port.

Vectors of renditions differ from those of originals: a change of what is asked for raises RENDITIONS_VERSION of
`model/spec.py`, and with it the fingerprint.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from urllib.parse import unquote

SHORT_SIDE = 512
"""What the shorter side keeps for a network that sees 224 pixels: vectors move by 0.001 (docs/renditions.md)."""
QUALITY = 90
REFUSED_S = 600.0
"""A host that refused a rendition is asked for none for so long: each refusal costs a request."""
MAX_REFUSERS = 1000
REFUSALS = frozenset({400, 401, 403, 404, 429})
"""Statuses after which the original is fetched, once."""

Query = dict[str, str]
"""A URL's parameters in their order, as they are written."""


@dataclass(frozen=True)
class Parts:
    """A URL, cut."""

    origin: str
    """Scheme, host and port, as they were written."""
    host: str
    path: str
    search: str
    """The query as it is written, with its question mark."""

    @property
    def text(self) -> str:
        return self.origin + self.path + self.search

    @cached_property
    def query(self) -> Query:
        """Of a parameter that is there several times, the last."""
        return {name: equals + value for name, equals, value in self._parameters}

    @property
    def repeats(self) -> bool:
        """Which of two equal parameters counts is the server's secret."""
        return len(self.query) < len(self._parameters)

    @cached_property
    def _parameters(self) -> list[tuple[str, str, str]]:
        return [each.partition("=") for each in self.search[1:].split("&") if each]

    def asking(self, query: Query) -> Parts:
        """This URL with another query."""
        return replace(self, search="?" + "&".join(name + value for name, value in query.items()))


@dataclass(frozen=True)
class Rendition:
    """A smaller picture of one."""

    url: str
    short_side: int
    bound: int
    """A picture whose longer side has so many pixels may have been made smaller."""
    refuser: str
    """Of whom a refusal is remembered."""
    remembered: frozenset[int]
    """After which statuses."""

    def is_enough(self, width: int, height: int) -> bool:
        """Whether the shorter side is long enough, or as long as the original's."""
        return min(width, height) >= self.short_side or max(width, height) < self.bound


@dataclass(frozen=True)
class CDN:
    """One row of the table."""

    name: str
    hosts: tuple[str, ...]
    """Globs. Those that are named with the setting (`cloudinary@img.example.com`) take their place."""
    rewritten: Callable[[Parts, int], tuple[Parts, int] | None]
    """A URL and the bound of the longer side → the URL of a rendition, and its bound. None: it is to be left."""
    remembered: frozenset[int] = REFUSALS
    """Those of REFUSALS after which the next picture is likely to be refused as well."""
    account: int = 0
    """So many parts of the path say whose the picture is: one customer's refusal is not another's."""


class Renditions:
    """What the operator switched on, and who refused lately. For one event loop."""

    def __init__(
        self, wanted: Sequence[str], *, crop: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`wanted` is the setting's: names of CDNS, each with a host of one's own where it has one ("name@host").

        `crop` is the side of what the network sees, in pixels. Raises ValueError for a name that is none.
        """
        self._cdns = [_wanted(text) for text in wanted]
        self._short_side = math.ceil(SHORT_SIDE * crop / 224)
        self._clock = clock
        self._refused: OrderedDict[str, float] = OrderedDict()

    def of(self, url: str) -> Rendition | None:
        """None where `url` is of no CDN that was switched on, is to be left, or of one that refused lately."""
        if not self._cdns:
            return None
        parts = _cut(url)
        if parts is None or _is_signed(parts.query):
            return None
        for cdn in self._cdns:
            if any(fnmatchcase(parts.host, glob) for glob in cdn.hosts):
                found = cdn.rewritten(parts, 2 * self._short_side)
                if found is None or found[0].text == parts.text:
                    continue
                rewritten, bound = found
                refuser = parts.host + "/".join(parts.path.split("/")[: cdn.account + 1])
                if self._refused.get(refuser, 0.0) > self._clock():
                    return None
                return Rendition(rewritten.text, self._short_side, bound, refuser, cdn.remembered)
        return None

    def refused(self, rendition: Rendition) -> None:
        """`rendition` was refused, and its original was there."""
        self._refused[rendition.refuser] = self._clock() + REFUSED_S
        self._refused.move_to_end(rendition.refuser)
        if len(self._refused) > MAX_REFUSERS:
            self._refused.popitem(last=False)


def original_bytes(headers: Mapping[str, str]) -> int | None:
    """The size of the original, where the CDN says it beside a rendition."""
    said = headers.get("Source-Length", "")  # Shopify
    cloudinary = re.search(r"\bobytes=([0-9]{1,12})", headers.get("Server-Timing", ""))
    if cloudinary:
        return int(cloudinary[1])
    return int(said) if re.fullmatch("[0-9]{1,12}", said) else None


_URL = re.compile(
    r"(?P<origin>https?://(?P<host>[^/?#@:\[\]\\]+)(?::[0-9]*)?)(?P<path>/[^?#]*)(?P<search>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)


def _cut(url: str) -> Parts | None:
    found = _URL.fullmatch(url.strip())
    if found is None:
        return None
    host = found["host"].lower().removesuffix(".")
    return Parts(found["origin"], host, found["path"], found["search"] or "")


_SIGNATURES = frozenset(
    {"s", "sig", "signature", "token", "policy", "expires", "key-pair-id", "hdnts", "hdnea", "hmac", "ixsig"}
)


def _is_signed(query: Query) -> bool:
    names = [name.lower() for name in query]
    return any(name in _SIGNATURES or name.startswith(("x-amz-", "x-goog-", "__cld_token")) for name in names)


# --- Cloudinary: /CLOUD/image/TYPE/[s--SIGNATURE--/][TRANSFORMATION/...][vVERSION/]PUBLIC-ID

_CLOUDINARY_STEP = re.compile(
    r"\$.+|(?:a|ac|af|ar|b|bl|bo|br|c|cb|co|cs|d|dl|dn|dpr|du|e|eo|f|fl|fn|fps|g|h|if|ki|l|o|p|pg|q|r|so|sp|t|tp|u|"
    r"vc|vs|w|x|y|z)_.+"
)
_VERSION = re.compile("v[0-9]+")
_MAY_BE_STEP = re.compile("[a-z]{1,3}_")
_REMOTE = re.compile("https?(:|%3a)", re.IGNORECASE)


def _cloudinary(url: Parts, bound: int) -> tuple[Parts, int] | None:
    """One more step behind those that are there: `c_limit` neither crops nor enlarges."""
    segments = url.path.split("/")
    start = next(
        (
            at + 2
            for at in (1, 2)  # a cloud with a host of its own is not named in the path
            if segments[at : at + 1] == ["image"] and segments[at + 1 : at + 2] in (["upload"], ["fetch"])
        ),
        None,
    )
    if start is None or start == len(segments) or segments[start].startswith("s--"):
        return None
    if segments[start - 1] == "fetch":  # what is behind is a URL of its own, with slashes and all
        end = next((at for at in range(start, len(segments)) if _REMOTE.match(segments[at])), None)
        if end is None:
            return None
        if end > start and _VERSION.fullmatch(segments[end - 1]):
            end -= 1
        if not all(map(_is_transformation, segments[start:end])):
            return None
    else:
        end = start
        while end < len(segments) - 1 and _is_transformation(segments[end]):
            end += 1
        version = next((at for at in range(end, len(segments) - 1) if _VERSION.fullmatch(segments[at])), end)
        if any(_MAY_BE_STEP.match(segment) for segment in segments[end:version]):
            return None  # a folder, or a step that is not known here and has to stay the last
    ours = f"c_limit,w_{bound},h_{bound},f_jpg,q_{QUALITY}"
    if segments[end - 1] == ours:
        return None
    return replace(url, path="/".join([*segments[:end], ours, *segments[end:]])), bound


def _is_transformation(segment: str) -> bool:
    return all(_CLOUDINARY_STEP.fullmatch(part) for part in unquote(segment).split(","))


# --- Those that take their size from the query, in one step: what asks for a shape is left.


def _limits(query: Query, names: tuple[str, str], bound: int) -> bool | None:
    """Whether the size that the URL asks for is within `bound` already; None where that can't be read."""
    asked = [query[name] for name in names if name in query]
    if not all(re.fullmatch("=[0-9]{1,5}", value) for value in asked):
        return None
    return any(int(value[1:]) <= bound for value in asked)


def _sized(
    url: Parts,
    bound: int,
    *,
    size: Query,
    left: frozenset[str] = frozenset(),
    kept: frozenset[str] | None = None,
) -> Parts | None:
    """`url` with the parameters of `size`; None where it is small already, or asks for what is not to be touched.

    `left` are parameters that make it be left; `kept`, where given, are the only ones that do not.
    """
    names = set(url.query) - set(size)
    if (
        url.repeats
        or names & left
        or (kept is not None and any(name not in kept and not name.startswith("utm_") for name in names))
    ):
        return None
    widths = [name for name in ("w", "h", "width", "height") if name in size]
    small = _limits(url.query, (widths[0], widths[-1]), bound)
    if small is None or small:
        return None
    rest = {name: value for name, value in url.query.items() if name not in size}
    return url.asking(rest | {name: f"={value}" for name, value in size.items()})


def _imgix(url: Parts, bound: int) -> tuple[Parts, int] | None:
    if url.query.get("fit", "=max") not in ("=max", "=clip"):
        return None
    auto = unquote(url.query.get("auto", "=")[1:]).split(",")
    query = {name: value for name, value in url.query.items() if name != "auto"}
    if more := [word for word in auto if word and word not in ("format", "compress")]:
        query["auto"] = "=" + ",".join(more)
    found = _sized(
        url.asking(query) if query != url.query else url,
        bound,
        size={"w": str(bound), "h": str(bound), "fit": "max", "fm": "jpg", "q": str(QUALITY)},
        kept=frozenset(
            {"auto", "crop", "cs", "ixid", "ixlib", "v"}
        ),  # `crop` says nothing without `fit=crop`
    )
    return None if found is None else (found, bound)


_JPEG = re.compile(r"\.jpe?g$", re.IGNORECASE)
_SHOPIFY_SIZE = re.compile(
    r"_(\d*x\d*|pico|icon|thumb|small|compact|medium|large|grande|original|master)(_crop_\w+)?(@\dx)?(\.progressive)?\.\w+$"
)


def _shopify(url: Parts, bound: int) -> tuple[Parts, int] | None:
    """Bounded by its width: of a height nobody says whether it crops."""
    if not re.match("/s/files/|/cdn/shop/", url.path) or _SHOPIFY_SIZE.search(url.path):
        return None
    size = {"width": str(bound)} | ({"format": "jpg"} if _JPEG.search(url.path) else {})
    found = _sized(url, bound, size=size, left=frozenset({"height", "crop", "pad_color"}))
    return None if found is None else (found, bound)


def _contentful(url: Parts, bound: int) -> tuple[Parts, int] | None:
    size = {"w": str(bound), "h": str(bound)}
    if _JPEG.search(url.path):  # others may be transparent, and what is behind them would be the CDN's choice
        size |= {"fm": "jpg", "q": str(QUALITY)}
    found = _sized(url, bound, size=size, kept=frozenset({"fm", "q", "fl"}))
    return None if found is None else (found, bound)


_SANITY = re.compile(r"/images/[^/]+/[^/]+/[^/]+-([0-9]{1,5})x([0-9]{1,5})\.[a-z]+")


def _sanity(url: Parts, bound: int) -> tuple[Parts, int] | None:
    """The size is in the name, so the shorter side can be had as it is wanted."""
    named = _SANITY.fullmatch(url.path)
    if named is None or url.query.get("fit", "=max") not in ("=max", "=clip"):
        return None
    width, height = int(named[1]), int(named[2])
    scale = bound / 2 / max(1, min(width, height))
    if scale >= 1:
        return None
    wide, high = math.ceil(width * scale), math.ceil(height * scale)
    size = {"w": str(wide), "h": str(high), "fit": "max"}
    if _JPEG.search(url.path):
        size |= {"fm": "jpg", "q": str(QUALITY)}
    rest = {name: value for name, value in url.query.items() if (name, value) != ("auto", "=format")}
    found = _sized(
        url.asking(rest) if rest != url.query else url,
        max(wide, high),
        size=size,
        kept=frozenset({"fm", "q"}),
    )
    return None if found is None else (found, max(wide, high))


# --- Cloudflare: /cdn-cgi/image/OPTION,OPTION/SOURCE

_CLOUDFLARE_NAMES = {"w": "width", "h": "height", "q": "quality", "f": "format"}
_CLOUDFLARE_KEPT = frozenset({"format", "quality", "metadata", "onerror", "anim", "compression", "fit"})


def _cloudflare(url: Parts, bound: int) -> tuple[Parts, int] | None:
    """Only where a URL has options already: whether a site takes them can't be seen from its other URLs."""
    found = re.fullmatch("(/cdn-cgi/image/)([^/]+)(/.+)", url.path)
    if found is None:
        return None
    options = dict(option.partition("=")[::2] for option in unquote(found[2]).split(","))
    options = {_CLOUDFLARE_NAMES.get(name, name): value for name, value in options.items()}
    sizes = [options.pop(name) for name in ("width", "height") if name in options]
    if options.keys() - _CLOUDFLARE_KEPT or options.get("fit", "scale-down") not in ("scale-down", "contain"):
        return None
    if any(size.isdecimal() and int(size) <= bound for size in sizes):
        return None
    options |= {"width": str(bound), "height": str(bound), "fit": "scale-down", "quality": str(QUALITY)}
    if _JPEG.search(url.path):
        options["format"] = "jpeg"
    written = ",".join(f"{name}={value}" for name, value in options.items())
    return replace(url, path=found[1] + written + found[3]), bound


# --- Wikimedia: /wikipedia/PROJECT/thumb/a/ab/NAME.jpg/960px-NAME.jpg

_WIKIMEDIA_STEPS = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)
"""Other widths are answered 429."""
_WIKIMEDIA = re.compile(r"(/wikipedia/[^/]+)(/[0-9a-f]/[0-9a-f]{2}/)([^/]+\.(?:jpe?g|png))", re.IGNORECASE)
_LONG_NAME = 160  # bytes: beyond it the name of a thumbnail is another


def _wikimedia(url: Parts, bound: int) -> tuple[Parts, int] | None:
    found = _WIKIMEDIA.fullmatch(url.path)
    step = next((step for step in _WIKIMEDIA_STEPS if step >= bound), None)
    if found is None or step is None or len(unquote(found[3]).encode()) > _LONG_NAME:
        return None
    before, folders, name = found.groups()
    return replace(url, path=f"{before}/thumb{folders}{name}/{step}px-{name}"), step


CDNS: tuple[CDN, ...] = (
    CDN(
        "cloudinary",
        ("res.cloudinary.com", "res-?.cloudinary.com", "*-res.cloudinary.com"),
        _cloudinary,
        account=1,
    ),
    CDN("imgix", ("*.imgix.net", "images.prismic.io", "www.datocms-assets.com"), _imgix),
    CDN("unsplash", ("images.unsplash.com", "plus.unsplash.com"), _imgix),
    CDN("shopify", ("cdn.shopify.com", "*.myshopify.com"), _shopify),
    CDN("contentful", ("images.ctfassets.net", "images.eu.ctfassets.net"), _contentful, account=1),
    CDN("sanity", ("cdn.sanity.io",), _sanity, account=2),
    CDN("cloudflare", ("*",), _cloudflare),
    # A picture that is narrower than the step is refused, and that says nothing of the next one.
    CDN("wikimedia", ("upload.wikimedia.org",), _wikimedia, remembered=frozenset({403, 429})),
)


def _wanted(text: str) -> CDN:
    name, _, host = text.partition("@")
    known = {cdn.name: cdn for cdn in CDNS}
    if name not in known:
        raise ValueError(f"EMBEDDER_RENDITIONS names {name!r}; known are {', '.join(sorted(known))}")
    return replace(known[name], hosts=(host,)) if host else known[name]
