"""Every knob of the service, in one table, read once from the environment.

A value that can't be used stops the start with one sentence: the variable, what it was, what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv6Address, ip_network
from typing import Any

from embedder.fetch.addresses import Network
from embedder.runtime.cpu import MAX_WORKERS, available_cores
from embedder.runtime.memory import available_memory_bytes, mappable_bytes

# Of one worker, with the network loaded and images going through it.
WORKER_BYTES = 400_000_000
# What a worker maps after it has read its settings, with the stacks of its threads, of which there are two
# more for each core. Seen on 2 cores: 280 MB until it was ready, 390 to 430 MB with images going through it.
LATER_MAPPED_BYTES = 370_000_000 + 2 * available_cores() * 8_388_608


class SettingError(ValueError):
    """An environment variable holds something that can't be used."""

    def __init__(self, variable: str, value: str, takes: str) -> None:
        self.variable = variable
        self.value = value
        self.takes = takes
        super().__init__(f"{variable}={value!r} can't be used: it takes {takes}")


@dataclass(frozen=True)
class Knob:
    """One environment variable: what it takes, what it means, how its text becomes a value."""

    variable: str
    default: str
    takes: str
    meaning: str
    parse: Callable[[str], Any]  # Any: each knob has a type of its own; Settings states them
    secret: bool = False
    """Its value is never shown."""


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone also takes "1_000", " 7" and the digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,15}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(text)
        return int(text)

    return parse


def _seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not minimum <= float(text) <= maximum:
            raise ValueError(text)
        return float(text)

    return parse


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


def _whole_or_auto(minimum: int, maximum: int) -> Callable[[str], int | None]:
    whole = _whole(minimum, maximum)
    return lambda text: None if text == "auto" else whole(text)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _host_globs(text: str) -> tuple[str, ...]:
    globs = tuple(_host_glob(item.lower()) for item in _items(text))
    if text and not globs:  # "$HOSTS,$MORE" with both unset must not mean any host
        raise ValueError(text)
    return globs


def _host_glob(text: str) -> str:
    """One that some host of a URL can match: without a port, and an IPv6 address as Python writes it."""
    if ":" in text:
        return _ipv6_glob(text)
    name = text.removesuffix(".")
    label = "[a-z0-9_*?]([a-z0-9_*?-]*[a-z0-9_*?])?"
    if not re.fullmatch(rf"{label}(\.{label})*", name):
        raise ValueError(text)
    if name != text and not re.search("[a-z0-9]", name):  # "*.$DOMAIN" that is unset must not mean any host
        raise ValueError(text)
    return name


def _ipv6_glob(text: str) -> str:
    if not re.fullmatch("[0-9a-f:.*?]+", text) or re.fullmatch("[^:]*:[0-9]*", text):  # a name, or a port
        raise ValueError(text)
    if not re.search("[*?]", text) and str(IPv6Address(text)) != text:
        raise ValueError(text)
    return text


def _ports(text: str) -> frozenset[int]:
    port = _whole(1, 65535)
    ports = frozenset(port(item) for item in _items(text))
    if not ports:
        raise ValueError(text)
    return ports


def _networks(text: str) -> tuple[Network, ...]:
    if "%" in text:  # a zone, which ip_network would drop
        raise ValueError(text)
    return tuple(ip_network(item) for item in _items(text))


def _keys(text: str) -> tuple[str, ...]:
    key = _matching(r"[!-+\--~]{16,256}")  # printable ASCII without blanks and commas
    keys = tuple(key(item) for item in _items(text))
    if text and not keys:  # "$KEY" that is unset, among commas, must not mean no key
        raise ValueError(text)
    return keys


def _open_routes(text: str) -> frozenset[str]:
    route = _matching("docs|info|metrics")
    return frozenset(route(item) for item in _items(text))


KNOBS: dict[str, Knob] = {
    "model": Knob(
        "EMBEDDER_MODEL",
        "resnet18:latest",
        "a tag of BentoML's model store, `name:version` or `name:latest`",
        "the model to serve; a built Bento carries the one it was built with",
        _matching(r"[a-z0-9][a-z0-9._-]{0,62}:[a-z0-9][a-z0-9._-]{0,62}"),
    ),
    "precision": Knob(
        "EMBEDDER_PRECISION",
        "fp32",
        "fp32 or int8",
        "the arithmetic of the network; int8 is faster and takes a model saved with it",
        _matching("fp32|int8"),
    ),
    "workers": Knob(
        "EMBEDDER_WORKERS",
        str(min(max(2, available_cores()), MAX_WORKERS)),
        f"a whole number, 1 to {MAX_WORKERS}",
        "processes that serve; at least 2, so that one can die without an outage",
        _whole(1, MAX_WORKERS),
    ),
    "threads": Knob(
        "EMBEDDER_THREADS",
        "1",
        "a whole number, 1 to 256",
        "threads of the network for a batch; an image that is alone gets up to 4 where cores are idle",
        _whole(1, 256),
    ),
    "port": Knob(
        "EMBEDDER_PORT",
        "8000",
        "a whole number, 1 to 65535",
        "the port to listen on",
        _whole(1, 65535),
    ),
    "max_batch_size": Knob(
        "EMBEDDER_MAX_BATCH_SIZE",
        "32",
        "a whole number, 2 to 1024",
        "images that go through the network together, at most",
        _whole(2, 1024),
    ),
    "max_urls": Knob(
        "EMBEDDER_MAX_URLS",
        "64",
        "a whole number, 1 to 10000",
        "URLs in one `/embed_batch` request",
        _whole(1, 10_000),
    ),
    "max_body_bytes": Knob(
        "EMBEDDER_MAX_BODY_BYTES",
        "32000000",
        "a whole number of bytes, 1000 to 1000000000",
        "bytes of a request's body",
        _whole(1_000, 1_000_000_000),
    ),
    "max_image_bytes": Knob(
        "EMBEDDER_MAX_IMAGE_BYTES",
        "20000000",
        "a whole number of bytes, 1000 to 1000000000",
        "bytes of one image, as it is downloaded or carried by a `data:` URL",
        _whole(1_000, 1_000_000_000),
    ),
    "max_image_pixels": Knob(
        "EMBEDDER_MAX_IMAGE_PIXELS",
        "50000000",
        "a whole number of pixels, 1 to 1000000000",
        "width times height of one image",
        _whole(1, 1_000_000_000),
    ),
    "max_in_flight_images": Knob(
        "EMBEDDER_MAX_IN_FLIGHT_IMAGES",
        "256",
        "a whole number, 1 to 100000",
        "images in work in one worker; one more is answered 429",
        _whole(1, 100_000),
    ),
    "max_in_flight_bytes": Knob(
        "EMBEDDER_MAX_IN_FLIGHT_BYTES",
        "auto",
        "auto, or a whole number of bytes, 1000000 to 1000000000000",
        "bytes of bodies and downloads in one worker; more are answered 429; auto: by the memory there is",
        _whole_or_auto(1_000_000, 1_000_000_000_000),
    ),
    "max_decoding_bytes": Knob(
        "EMBEDDER_MAX_DECODING_BYTES",
        "auto",
        "auto, or a whole number of bytes, 1000000 to 1000000000000",
        "memory that decoding may take in one worker; images wait for it; auto: by the memory there is",
        _whole_or_auto(1_000_000, 1_000_000_000_000),
    ),
    "fetch_timeout_s": Knob(
        "EMBEDDER_FETCH_TIMEOUT_S",
        "10",
        "seconds, 0.1 to 40",
        "from the start of one download to its last byte, all redirects and waiting included",
        _seconds(0.1, 40),
    ),
    "max_redirects": Knob(
        "EMBEDDER_MAX_REDIRECTS",
        "3",
        "a whole number, 0 to 20",
        "redirects followed for one image",
        _whole(0, 20),
    ),
    "allowed_hosts": Knob(
        "EMBEDDER_ALLOWED_HOSTS",
        "",
        "host names separated by commas; `*` stands for any characters",
        "the only hosts to fetch from, like `res.cloudinary.com,*.example.org`; empty: any public host",
        _host_globs,
    ),
    "allowed_ports": Knob(
        "EMBEDDER_ALLOWED_PORTS",
        "80,443",
        "port numbers separated by commas",
        "the only ports to fetch from",
        _ports,
    ),
    "cache_entries": Knob(
        "EMBEDDER_CACHE_ENTRIES",
        "10000",
        "a whole number, 0 to 10000000",
        "embeddings of images seen before, kept in each worker's memory, 2.3 kB each; 0: off",
        _whole(0, 10_000_000),
    ),
    "api_keys": Knob(
        "EMBEDDER_API_KEYS",
        "",
        "keys of 16 to 256 ASCII characters, without blanks, separated by commas",
        "keys, any of which a client must send; several at once, to replace one; empty: open to all",
        _keys,
        secret=True,
    ),
    "open_routes": Knob(
        "EMBEDDER_OPEN_ROUTES",
        "",
        "any of docs, info and metrics, separated by commas",
        "what needs no key beside the health routes, where keys are set: any of docs, info and metrics",
        _open_routes,
    ),
    "allowed_networks": Knob(
        "EMBEDDER_ALLOWED_NETWORKS",
        "",
        "networks like 10.1.0.0/16 or fd00::/8, separated by commas, with no bit set after the prefix",
        "networks that may be fetched from although they are not public",
        _networks,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The knobs' values. Each field is a row of `KNOBS`."""

    model: str
    precision: str
    workers: int
    threads: int
    port: int
    max_batch_size: int
    max_urls: int
    max_body_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_in_flight_images: int
    max_in_flight_bytes: int
    max_decoding_bytes: int
    fetch_timeout_s: float
    max_redirects: int
    allowed_hosts: tuple[str, ...]
    allowed_ports: frozenset[int]
    cache_entries: int
    api_keys: tuple[str, ...] = field(repr=False)
    open_routes: frozenset[str]
    allowed_networks: tuple[Network, ...]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """The settings in `environ`; a variable that is unset or blank has its default.

        Raises SettingError for the first value that can't be used, and for a variable that looks like a
        misspelt setting: a misspelt limit must not silently be no limit.
        """
        known = {knob.variable for knob in KNOBS.values()}
        for variable in sorted(environ.keys() - known):
            meant = _meant(variable, known) if variable.upper().startswith("EMBEDDER_") else None
            if meant:
                raise SettingError(variable, "...", f"no value, as it is no setting; did you mean {meant}?")
        values = {name: _read(knob, environ) for name, knob in KNOBS.items()}
        automatic = _automatic_bytes(
            available_memory_bytes(), mappable_bytes=mappable_bytes(), workers=values["workers"]
        )
        # One request's body, and the images in its `data:` URLs. What has no room even alone would be told to
        # come again for ever.
        least_bytes = max(2 * values["max_body_bytes"], values["max_image_bytes"])
        automatic["max_in_flight_bytes"] = max(automatic["max_in_flight_bytes"], least_bytes)
        values.update((name, automatic[name]) for name, value in values.items() if value is None)
        settings = cls(**values)
        if settings.max_in_flight_bytes < least_bytes:
            raise SettingError(
                "EMBEDDER_MAX_IN_FLIGHT_BYTES",
                str(settings.max_in_flight_bytes),
                f"at least {least_bytes}: EMBEDDER_MAX_IMAGE_BYTES, and twice EMBEDDER_MAX_BODY_BYTES",
            )
        if settings.max_urls > settings.max_in_flight_images:
            raise SettingError(
                "EMBEDDER_MAX_IN_FLIGHT_IMAGES",
                str(settings.max_in_flight_images),
                f"at least as many as EMBEDDER_MAX_URLS, which is {settings.max_urls}",
            )
        return settings


def _automatic_bytes(memory_bytes: int, *, mappable_bytes: int | None, workers: int) -> dict[str, int]:
    """Limits for one of `workers`, so that all stay within four fifths of the memory where that can be.

    And each within what it may map, where that is limited: the memory is shared, that limit is its own.
    """
    share = int(0.8 * memory_bytes / workers) - WORKER_BYTES
    if mappable_bytes is not None:
        share = min(share, int(0.8 * (mappable_bytes - LATER_MAPPED_BYTES)))
    return {
        "max_in_flight_bytes": min(max(share // 4, 64_000_000), 1_000_000_000),
        "max_decoding_bytes": min(max(share // 2, 128_000_000), 2_000_000_000),
    }


def _read(knob: Knob, environ: Mapping[str, str]) -> Any:  # Any: as Knob.parse
    text = environ.get(knob.variable, "").strip() or knob.default
    try:
        return knob.parse(text)
    except ValueError:
        raise SettingError(knob.variable, "..." if knob.secret else text, knob.takes) from None


def _meant(variable: str, known: set[str]) -> str | None:
    """The setting that `variable` may be a misspelling of, in any case.

    Nearly the same name, or one with words left out or added, as in EMBEDDER_API_KEYS_FILE. Anything else is
    somebody else's variable, like those that Kubernetes makes for a service's name.
    """
    words = set(variable.upper().split("_"))
    left_out = [name for name in sorted(known) if words < set(name.split("_"))]
    # Not to those of one word: Kubernetes makes EMBEDDER_PORT_80_TCP, and others from "embedder-model".
    added = [name for name in sorted(known) if words > set(name.split("_")) and name.count("_") > 1]
    near = get_close_matches(variable.upper(), known, n=1, cutoff=0.9)
    return next(iter(near or left_out or added), None)
