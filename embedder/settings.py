"""Every setting of the service, in one table, read once from a mapping such as the environment.

A value that can't be used stops the start with one sentence: the variable, what it was, what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Generic, TypeVar

from embedder.runtime.cpu import MAX_WORKERS, available_cores
from embedder.runtime.memory import available_memory_bytes, mappable_bytes

T = TypeVar("T")

AUTO = 0
"""Of a setting that takes `auto`: its value is worked out from the machine."""

WORKER_BYTES = 400_000_000
"""The memory of one worker with the network loaded and images going through it."""

# Kubernetes sets these in every pod of a namespace that has a Service named `embedder`, or `embedder-...`.
_SERVICE_LINK = re.compile(
    r"EMBEDDER_(.*_)?(SERVICE_HOST=.*|SERVICE_PORT(_.*)?=.*|PORT_[0-9]+_.*|PORT=(tcp|udp|sctp)://.*)",
    re.DOTALL,
)


class SettingError(ValueError):
    """A setting holds something that can't be used."""

    def __init__(self, variable: str, value: str, takes: str) -> None:
        self.variable = variable
        super().__init__(f"{variable}={value!r} can't be used: it takes {takes}")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What a setting takes. `parse` makes its value of a text, and raises ValueError for a bad one."""

    parse: Callable[[str], T]
    takes: str


@dataclass(frozen=True)
class Row:
    """What is known of a setting beside its name and type."""

    default: str
    kind: Kind[Any]  # Any: each setting has a type of its own, which its field states
    meaning: str
    secret: bool
    """Its value is never shown."""


def _setting(default: str, kind: Kind[T], meaning: str, *, secret: bool = False) -> T:
    row = Row(default, kind, meaning, secret)
    made: T = field(default_factory=lambda: kind.parse(default), metadata={"row": row}, repr=not secret)
    return made


def _whole(minimum: int, maximum: int, unit: str = "") -> Kind[int]:
    def parse(text: str) -> int:
        # int() alone also takes "1_000", " 7" and the digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,15}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(text)
        return int(text)

    of = f" of {unit}" if unit else ""
    return Kind(parse, f"a whole number{of}, {minimum} to {maximum}")


def _seconds(minimum: float, maximum: float) -> Kind[float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not minimum <= float(text) <= maximum:
            raise ValueError(text)
        return float(text)

    return Kind(parse, f"seconds, {minimum:g} to {maximum:g}")


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


def _whole_or_auto(minimum: int, maximum: int, unit: str = "") -> Kind[int]:
    whole = _whole(minimum, maximum, unit)
    return Kind(lambda text: AUTO if text == "auto" else whole.parse(text), f"auto, or {whole.takes}")


def _one_of(*values: str) -> Kind[str]:
    return Kind(_matching("|".join(values)), " or ".join(values))


def _several(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def parse_all(text: str) -> tuple[T, ...]:
        items = tuple(parse(item.strip()) for item in text.split(",") if item.strip())
        if text and not items:  # "$HOSTS,$MORE" with both unset must not mean any host, nor "$KEY," no key
            raise ValueError(text)
        return items

    return parse_all


def _host_glob(text: str) -> str:
    """One that some host of a URL can match: without a port, and an IPv6 address as Python writes it."""
    text = text.lower()
    if ":" in text:
        return _ipv6_glob(text)
    name = text.removesuffix(".")
    label = "[a-z0-9_*?]([a-z0-9_*?-]*[a-z0-9_*?])?"
    if not re.fullmatch(rf"{label}(\.{label})*", name):
        raise ValueError(text)
    if name != text and not re.search("[a-z0-9]", name):  # "*.$DOMAIN" that is unset must not mean any host
        raise ValueError(text)
    return name


def _rendition(text: str) -> str:
    name, at, host = text.lower().partition("@")
    return _matching("[a-z]+")(name) + at + (_host_glob(host) if at else "")


def _ipv6_glob(text: str) -> str:
    if not re.fullmatch("[0-9a-f:.*?]+", text) or re.fullmatch("[^:]*:[0-9]*", text):  # a name, or a port
        raise ValueError(text)
    if not re.search("[*?]", text) and str(IPv6Address(text)) != text:
        raise ValueError(text)
    return text


def _network(text: str) -> IPv4Network | IPv6Network:
    if "%" in text:  # a zone, which ip_network would drop
        raise ValueError(text)
    return ip_network(text)


def _proxy(text: str) -> str:
    """What has to be escaped in a user name or password must be: yarl would read another host otherwise."""
    safe = r"[A-Za-z0-9._~!$&'()*+,;=%-]"
    host = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    parts = re.fullmatch(rf"http://({safe}+:(:|{safe})*@)?{host}:(?P<port>[0-9]{{1,5}})/?", text)
    if text and (parts is None or not 1 <= int(parts["port"]) <= 65535):
        raise ValueError(text)
    return text


_PORT = _whole(1, 65535)
_PORTS = Kind(lambda text: frozenset(_several(_PORT.parse)(text)), "port numbers separated by commas")
_HOSTS = Kind(_several(_host_glob), "host names separated by commas; `*` stands for any characters")
_TEXTS = Kind(_several(str), "texts separated by commas")
_ORIGINS = Kind(
    _several(_matching(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?|\*")),
    "origins separated by commas: a scheme, a host in small letters, and a port where it is not the usual one",
)
_NETWORKS = Kind(
    _several(_network),
    "networks like 10.1.0.0/16 or fd00::/8, separated by commas, with no bit set after the prefix",
)
_PROXY = Kind(_proxy, "`http://host:port`, also with `user:password@` before the host")
_KEYS = Kind(
    _several(_matching(r"[!-+\--~]{16,256}")),  # printable ASCII without blanks and commas
    "keys of 16 to 256 ASCII characters, without blanks, separated by commas",
)
_FORMATS = Kind(
    _several(lambda text: _matching("[a-z0-9]+")(text.lower())),
    "names of formats separated by commas, like `jpeg,png,webp`",
)
_RENDITIONS = Kind(
    _several(_rendition),
    "names of CDNs separated by commas, each with a host of one's own where it has one: "
    "`cloudinary,cloudinary@images.example.com`",
)
_OPEN_ROUTES = Kind(
    lambda text: frozenset(_several(_matching("docs|info|metrics"))(text)),
    "any of docs, info and metrics, separated by commas",
)
_SWITCH = Kind(lambda text: _matching("[01]")(text) == "1", "1 or 0")
_MODEL_TAG = Kind(
    _matching(r"[a-z0-9][a-z0-9._-]{0,62}:[a-z0-9][a-z0-9._-]{0,62}"),
    "a tag of BentoML's model store, `name:version` or `name:latest`",
)
_CONTACT = Kind(
    _matching(r"([!-'*-\[\]-~]{1,200})?"),
    "up to 200 ASCII characters without blanks, parentheses and backslashes: a URL or a mail address",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is a setting. Its environment variable is EMBEDDER_ and the field's name in capitals."""

    model: str = _setting(
        "resnet18:latest", _MODEL_TAG, "the model to serve; a built Bento carries the one it was built with"
    )
    precision: str = _setting(
        "fp32",
        _one_of("fp32", "bf16", "int8"),
        "the arithmetic of the network; bf16 takes openvino and a processor that has it; int8 is the fastest and "
        "takes a model saved with it",
    )
    workers: int = _setting(
        "auto",
        _whole_or_auto(1, MAX_WORKERS),
        "processes that serve; auto: one for each core, at least 2, so that one can die without an outage",
    )
    threads: int = _setting(
        "1",
        _whole(1, 256),
        "threads of the network for a batch; an image that is alone gets up to 4 where cores are idle",
    )
    batching: str = _setting(
        "eager",
        _one_of("eager", "bentoml"),
        "how requests are joined in batches: at once, or by BentoML's own batcher, which waits for company",
    )
    port: int = _setting("8000", _PORT, "the port to listen on")
    max_batch_size: int = _setting(
        "32", _whole(2, 1024), "images that go through the network together, at most"
    )
    max_urls: int = _setting("64", _whole(1, 10000), "URLs in one `/embed_batch` request")
    max_inputs: int = _setting(
        "2048",
        _whole(1, 10000),
        "images in one request of OpenAI's, TEI's and Weaviate's clients; it goes through in windows",
    )
    max_body_bytes: int = _setting("32000000", _whole(1000, 1000000000, "bytes"), "bytes of a request's body")
    max_image_bytes: int = _setting(
        "20000000",
        _whole(1000, 1000000000, "bytes"),
        "bytes of one image, as it is downloaded or carried by a `data:` URL",
    )
    max_image_pixels: int = _setting(
        "50000000", _whole(1, 1000000000, "pixels"), "width times height of one image"
    )
    max_in_flight_images: int = _setting(
        "256", _whole(1, 100000), "images in work in one worker; one more is answered 429"
    )
    max_in_flight_bytes: int = _setting(
        "auto",
        _whole_or_auto(1000000, 1000000000000, "bytes"),
        "bytes of bodies and downloads in one worker; more are answered 429; auto: by the memory",
    )
    decoders: int = _setting(
        "auto",
        _whole_or_auto(1, 256),
        "processes that decode, for each worker; auto: its share of the cores, at least 2",
    )
    max_decoding_bytes: int = _setting(
        "auto",
        _whole_or_auto(1000000, 1000000000000, "bytes"),
        "memory that one worker's decoding may take; three quarters of it for a large image; auto: by the memory",
    )
    decode_timeout_s: float = _setting(
        "10", _seconds(0.1, 40), "for decoding one image; it is a bad image when that takes longer"
    )
    formats: tuple[str, ...] = _setting(
        "",
        _FORMATS,
        "image formats to take; empty: jpeg, png, webp, gif, avif, bmp, tiff and ico; heic and jxl need a package",
    )
    fetch_timeout_s: float = _setting(
        "10",
        _seconds(0.1, 40),
        "from the start of one download to its last byte, all redirects and waiting included",
    )
    connect_timeout_s: float = _setting(
        "2", _seconds(0.1, 40), "for a connection to an image's server, TLS included"
    )
    max_redirects: int = _setting("5", _whole(0, 20), "redirects followed for one image")
    allowed_hosts: tuple[str, ...] = _setting(
        "",
        _HOSTS,
        "the only hosts to fetch from, like `res.cloudinary.com,*.example.org`; empty: any public host",
    )
    allowed_ports: frozenset[int] = _setting("80,443", _PORTS, "the only ports to fetch from")
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "", _NETWORKS, "networks that may be fetched from although they are not public"
    )
    renditions: tuple[str, ...] = _setting(
        "",
        _RENDITIONS,
        "CDNs that are asked for a smaller picture, any of cloudinary, imgix, unsplash, shopify, contentful, sanity, "
        "cloudflare and wikimedia; empty: the pictures are fetched as their URLs say",
    )
    contact: str = _setting(
        "",
        _CONTACT,
        "whom an image's server may write to: it is sent in the User-Agent, and some public archives ask for it",
    )
    proxy: str = _setting(
        "",
        _PROXY,
        "a proxy for all downloads; it resolves names then, so it must keep private addresses out",
        secret=True,
    )
    probe_inputs: tuple[str, ...] = _setting(
        "",
        _TEXTS,
        "words that plug-ins ask the vector of when they are set up, like `check,how big`: they get a grey picture's",
    )
    cors_origins: tuple[str, ...] = _setting(
        "",
        _ORIGINS,
        "origins whose web pages may call the service, like `https://shop.example`, or `*`; empty: none",
    )
    cache_entries: int = _setting(
        "10000",
        _whole(0, 10000000),
        "embeddings of images seen before, kept in each worker's memory, 2.5 kB each; 0: off",
    )
    api_keys: tuple[str, ...] = _setting(
        "",
        _KEYS,
        "keys, any of which a client must send; several at once, to replace one; empty: open to all",
        secret=True,
    )
    open_routes: frozenset[str] = _setting(
        "",
        _OPEN_ROUTES,
        "what needs no key beside the health routes, where keys are set: any of docs, info and metrics",
    )
    playground: bool = _setting(
        "1", _SWITCH, "whether there is a page at `/playground`; it asks for a key where keys are set"
    )

    def __post_init__(self) -> None:
        """Works out what is AUTO. Raises SettingError for values that don't go together."""
        if self.workers == AUTO:
            object.__setattr__(self, "workers", min(max(2, available_cores()), MAX_WORKERS))
        if self.decoders == AUTO:
            object.__setattr__(self, "decoders", max(2, available_cores() // self.workers))
        # One request may bring its body and the images in its `data:` URLs. A budget below that would answer
        # 429 to such a request on every try.
        least_bytes = max(2 * self.max_body_bytes, self.max_image_bytes)
        share = _share_bytes(self)
        if self.max_in_flight_bytes == AUTO:
            automatic = min(max(share // 4, 64_000_000), 1_000_000_000)
            object.__setattr__(self, "max_in_flight_bytes", max(automatic, least_bytes))
        if self.max_decoding_bytes == AUTO:
            automatic = min(max(3 * share // 4, 128_000_000), 2_000_000_000)
            object.__setattr__(self, "max_decoding_bytes", automatic)
        if self.max_in_flight_bytes < least_bytes:
            raise SettingError(
                "EMBEDDER_MAX_IN_FLIGHT_BYTES",
                str(self.max_in_flight_bytes),
                f"at least {least_bytes}: EMBEDDER_MAX_IMAGE_BYTES, and twice EMBEDDER_MAX_BODY_BYTES",
            )
        if self.max_urls > self.max_in_flight_images:
            raise SettingError(
                "EMBEDDER_MAX_IN_FLIGHT_IMAGES",
                str(self.max_in_flight_images),
                f"at least as many as EMBEDDER_MAX_URLS, which is {self.max_urls}",
            )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """The settings in `environ`; a variable that is unset or blank has its default.

        Raises SettingError for the first value that can't be used, and for an EMBEDDER_ variable that is no
        setting: a misspelt limit must not silently be no limit.
        """
        for variable in sorted(environ.keys() - ROWS.keys()):
            name = variable.upper()
            if name.startswith("EMBEDDER_") and not _SERVICE_LINK.fullmatch(f"{name}={environ[variable]}"):
                meant = get_close_matches(name, ROWS, n=1, cutoff=0)
                raise SettingError(
                    variable, "...", f"no value, as it is no setting; did you mean {meant[0]}?"
                )
        return cls(**{name_of(variable): _read(variable, row, environ) for variable, row in ROWS.items()})


ROWS: Mapping[str, Row] = {f"EMBEDDER_{each.name.upper()}": each.metadata["row"] for each in fields(Settings)}
"""Every setting by its environment variable."""


def name_of(variable: str) -> str:
    """The field of `Settings` that the environment variable sets."""
    return variable.removeprefix("EMBEDDER_").lower()


def later_mapped_bytes(settings: Settings) -> int:
    """Address space that a worker still needs after it has read its settings.

    370 MB, 8 MB of stack for each of two threads per core (seen on 2 cores: 390 to 430 MB together), and what it
    shares with its decoders.
    """
    shared = settings.decoders * settings.max_image_bytes
    return 370_000_000 + 2 * available_cores() * 8_388_608 + shared


def _share_bytes(settings: Settings) -> int:
    """The memory of one of the workers for images: all of them stay within four fifths of what there is.

    And within four fifths of what it may map, where that is limited: the memory is shared, that limit is not.
    """
    share = int(0.8 * available_memory_bytes() / settings.workers) - WORKER_BYTES
    mappable = mappable_bytes()
    return share if mappable is None else min(share, int(0.8 * (mappable - later_mapped_bytes(settings))))


def _read(variable: str, row: Row, environ: Mapping[str, str]) -> Any:  # Any: as Row.kind
    text = environ.get(variable, "").strip() or row.default
    try:
        return row.kind.parse(text)
    except ValueError:
        raise SettingError(variable, "..." if row.secret else text, row.kind.takes) from None
