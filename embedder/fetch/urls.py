"""May this URL be fetched? Pure: no name is looked up.

A URL is read once, strictly, and the result is what is fetched. What browsers, curl and Python would read
differently (odd spellings of addresses, backslashes, user names, missing slashes) is refused, not repaired.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote

import idna
from yarl import URL

from embedder.errors import URLNotAllowed
from embedder.fetch.addresses import AddressPolicy

MAX_URL_CHARACTERS = 8192
"""Presigned URLs have two thousand and more, and others carry such a one in themselves."""
MAX_HOST_CHARACTERS = 253  # RFC 1035 section 2.3.4, less the root's empty label

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Scheme and port are bounded, because errors quote them.
_SPLIT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,19})://(?P<authority>[^/?#]*)(?P<rest>[^#]*)(#.*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(:(?P<port>0{0,20}[0-9]{0,5}))?")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")  # also of names that break a rule for hyphens: browsers ask for them
# WHATWG URL, "ends in a number": browsers and the C library read a host with such a last label as an IPv4
# address.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DOT = re.compile(r"\.|%2e", re.IGNORECASE)
_DOT_DOT = re.compile(r"(\.|%2e){2}", re.IGNORECASE)
# Control characters and halves of surrogates: what one program drops, another escapes.
_REFUSED = frozenset({"Cc", "Cs"})
# Characters that are invisible or reverse the direction of text: a person would read another host than a
# program. Names of files have them, and blanks of several kinds: behind the host they are escaped. Unassigned ones
# are not among them: a newer Unicode, and so another Python, may have assigned them.
_INVISIBLE = frozenset({"Cf", "Zl", "Zp"})
# What does not decode as UTF-8 in a `Location`, as `Fields` gives it.
_UNDECODED = re.compile("[\udc80-\udcff]")
# Of category Cf too, but Persian and Hindi words, and emoji, need them.
_JOINERS = frozenset("\u200c\u200d")
# All that RFC 3986 allows in a path or query, and "%", so that nothing is escaped twice.
_KEPT_IN_PATH = "!$%&'()*+,-./:;=?@[]_~"


@dataclass(frozen=True)
class URLPolicy:
    """Which URLs may be fetched, before any name is looked up."""

    allowed_hosts: tuple[str, ...] = ()
    """Lower-case globs; `*` stands for any characters, dots too. Empty: any host."""
    allowed_ports: frozenset[int] = frozenset({80, 443})
    addresses: AddressPolicy = field(default_factory=AddressPolicy)

    def admit(self, text: str) -> URL:
        """The URL to fetch. Path and query stay as given, with two exceptions: characters that no URL may
        hold are percent-encoded as UTF-8, and "." and ".." in the path are resolved. Blanks and line ends around
        it, a fragment and an empty query are dropped.

        Raises URLNotAllowed, and nothing else, whatever `text` is.
        """
        text = text.strip().removeprefix("\ufeff")  # with which a file's first line may begin
        _check_characters(text)
        return self._admit(text)

    def _admit(self, text: str) -> URL:
        parts = _SPLIT.fullmatch(text)
        if parts is None:
            raise URLNotAllowed("the URL does not begin with http:// or https:// and a host")
        scheme = parts["scheme"].lower()
        if scheme not in _DEFAULT_PORTS:
            raise URLNotAllowed(f"the URL's scheme is {scheme!r}; allowed are http, https and data")
        if "@" in parts["authority"]:
            raise URLNotAllowed("the URL carries a user name or password")
        _check_visible(parts["authority"])
        authority = _AUTHORITY.fullmatch(parts["authority"])
        if authority is None:
            raise URLNotAllowed("the URL's host and port can't be read")
        if authority["host"].lower() in _DEFAULT_PORTS and authority["port"] == "":
            raise URLNotAllowed("the URL begins with http:// twice")
        host = self._admitted_host(authority["host"])
        port = self._admitted_port(authority["port"], scheme)
        path, mark, query = quote(parts["rest"], safe=_KEPT_IN_PATH).partition("?")
        rest = _without_dots(path) + mark + query
        netloc = host if port == _DEFAULT_PORTS[scheme] else f"{host}:{port}"
        url = URL(f"{scheme}://{netloc}{rest}", encoded=True)
        try:
            _ = url.host  # yarl decodes it only here, and "xn--" may be followed by no punycode
        except ValueError:
            raise URLNotAllowed("the URL's host is not a valid international name") from None
        return url

    def follow(self, url: URL, location: str) -> URL:
        """The URL that a redirect from `url` to `location` (absolute or relative) leads to.

        Raises URLNotAllowed as `admit` does.
        """
        location = _UNDECODED.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", location.strip())
        # Not of the joined URL: escapes have made `url` up to nine times as long as it was when admitted.
        _check_characters(location)
        return self._admit(_joined(url, location))

    def _admitted_host(self, text: str) -> str:
        """`text` as ASCII, lower case, addresses canonical and IPv6 in brackets."""
        if text.startswith("["):
            host = _canonical_ipv6(text[1:-1])
            name = host
        else:
            host = _ascii_host(text)
            name = host.removesuffix(".")
        if self.allowed_hosts and not any(fnmatchcase(name, glob) for glob in self.allowed_hosts):
            raise URLNotAllowed(f"the host {name!r} is not on this service's list of hosts")
        address = literal_address(name)
        if address is not None and not self.addresses.allows(address):
            raise URLNotAllowed(f"the address {name} is not public")
        return f"[{host}]" if ":" in host else host

    def _admitted_port(self, text: str | None, scheme: str) -> int:
        port = int(text) if text else _DEFAULT_PORTS[scheme]
        if port not in self.allowed_ports:
            allowed = ", ".join(map(str, sorted(self.allowed_ports)))
            raise URLNotAllowed(f"the URL's port is {port}; allowed are {allowed}")
        return port


def _check_characters(text: str) -> None:
    if len(text) > MAX_URL_CHARACTERS:
        raise URLNotAllowed(f"the URL has {len(text)} characters; the limit is {MAX_URL_CHARACTERS}")
    if "\\" in text or not _REFUSED.isdisjoint(map(unicodedata.category, set(text))):
        raise URLNotAllowed("the URL contains a backslash or a control character; escape it")


def _check_visible(authority: str) -> None:
    if not _INVISIBLE.isdisjoint(map(unicodedata.category, set(authority) - _JOINERS)):
        raise URLNotAllowed("the URL's host contains an invisible character")


def _joined(url: URL, location: str) -> str:
    # RFC 3986 section 5.2.2, on the text itself: yarl's own `join` decodes "%2F" and "%20" of the base.
    # The text before a colon is a scheme only when it begins with a letter, as in WHATWG's URL.
    if _SCHEME.match(location):
        return location
    if location.startswith("//"):
        return f"{url.scheme}:{location}"
    origin = f"{url.scheme}://{url.raw_authority}"
    if location.startswith("/"):
        return origin + location
    if location.startswith("?"):
        return origin + url.raw_path + location
    if location.startswith("#") or not location:
        return str(url) + location
    folder, _, _ = url.raw_path.rpartition("/")
    return f"{origin}{folder}/{location}"


def _without_dots(path: str) -> str:
    """RFC 3986 section 5.2.4; to WHATWG's URL, and so to browsers and curl, "%2e" is a dot too."""
    *parents, last = path.removeprefix("/").split("/")
    kept: list[str] = []
    for segment in parents:
        if _DOT_DOT.fullmatch(segment):
            del kept[-1:]
        elif not _DOT.fullmatch(segment):
            kept.append(segment)
    if _DOT_DOT.fullmatch(last):
        del kept[-1:]
        last = ""
    elif _DOT.fullmatch(last):
        last = ""
    return "/" + "/".join([*kept, last])


def _ascii_host(text: str) -> str:
    host = text.lower()
    if not text.isascii():
        # `text`, not `host`: Python lowers the last sigma of a word to its final form, UTS 46 does not.
        try:
            host = ".".join(map(_ascii_label, idna.uts46_remap(text, std3_rules=True).split(".")))
        except UnicodeError:  # idna.IDNAError is one
            raise URLNotAllowed("the URL's host is not a valid international name") from None
    if not host:
        raise URLNotAllowed("the URL has no host")
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_HOST_CHARACTERS or not all(map(_LABEL.fullmatch, labels)):
        raise URLNotAllowed("the URL's host is not a valid name")
    if _NUMERIC_LABEL.fullmatch(labels[-1]) and (text != name or literal_address(name) is None):
        raise URLNotAllowed("the URL's host is a number that is not a plain IPv4 address")
    return host


def _ascii_label(label: str) -> str:
    """As browsers have it (UTS 46): symbols are letters like others, which IDNA 2008 alone refuses."""
    if label.isascii():
        return label
    if not all(idna.valid_contextj(label, index) for index, c in enumerate(label) if c in _JOINERS):
        raise UnicodeError("a joiner that joins nothing")
    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    return f"xn--{label.encode('punycode').decode('ascii')}"


def _canonical_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise URLNotAllowed("the URL's host is not a valid IPv6 address") from None
    if address.scope_id is not None:
        raise URLNotAllowed("the URL's host is an IPv6 address with a zone")
    return str(address)


def literal_address(name: str) -> IPv4Address | IPv6Address | None:
    for family in (IPv4Address, IPv6Address):
        try:
            return family(name)
        except AddressValueError:
            continue
    return None
