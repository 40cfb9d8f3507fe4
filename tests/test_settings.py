# ruff: noqa: RUF001 - digits and letters that only look like ASCII are part of what is tested
"""Every setting: its default, its edges, what it refuses, and how the refusal reads."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from ipaddress import ip_network

import pytest

from embedder import settings as module
from embedder.settings import ROWS, WORKER_BYTES, SettingError, Settings, later_mapped_bytes, name_of
from scripts import settings_page

DEFAULTS: dict[str, object] = {
    "model": "resnet18:latest", "precision": "fp32", "threads": 1, "batching": "eager", "port": 8000,
    "max_batch_size": 32, "max_urls": 64, "max_inputs": 2048, "probe_inputs": (), "cors_origins": (),
    "max_body_bytes": 32_000_000, "max_image_bytes": 20_000_000,
    "max_image_pixels": 50_000_000, "max_in_flight_images": 256, "fetch_timeout_s": 10.0, "connect_timeout_s": 2.0,
    "decode_timeout_s": 10.0, "formats": (),
    "max_redirects": 5, "allowed_hosts": (), "allowed_ports": frozenset({80, 443}), "allowed_networks": (),
    "renditions": (), "contact": "", "proxy": "", "cache_entries": 10_000, "api_keys": (), "open_routes": frozenset(),
    "playground": True,
}  # fmt: skip
FROM_THE_MACHINE = {"workers", "decoders", "max_in_flight_bytes", "max_decoding_bytes"}
# What one request may bring must have room in work, so the edges of some settings need others.
ROOM = {
    "EMBEDDER_MAX_URLS": "1",
    "EMBEDDER_MAX_BODY_BYTES": "1000",
    "EMBEDDER_MAX_IMAGE_BYTES": "1000",
    "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "100000",
    "EMBEDDER_MAX_IN_FLIGHT_BYTES": "1000000000000",
}
KEY = "k" * 16


def value(variable: str, text: str) -> object:
    return getattr(Settings.from_environ({**ROOM, variable: text}), name_of(variable))


def refusal(variable: str, text: str) -> str:
    with pytest.raises(SettingError) as caught:
        Settings.from_environ({variable: text})
    assert caught.value.variable == variable
    return str(caught.value)


# The table


def test_an_empty_environment_gives_the_contracts_defaults() -> None:
    settings = Settings.from_environ({})
    assert {name_of(variable) for variable in ROWS} == DEFAULTS.keys() | FROM_THE_MACHINE
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    stated = {field.name: str(field.type).split("[")[0] for field in fields(Settings)}
    assert {name: type(getattr(settings, name)).__name__ for name in stated} == stated


def test_settings_that_a_program_makes_have_the_same_defaults() -> None:
    assert Settings() == Settings.from_environ({})
    assert Settings(max_urls=8).max_urls == 8


def test_a_blank_variable_has_its_default_and_blanks_around_a_value_are_dropped() -> None:
    for blank in ("", "\t\n "):
        assert Settings.from_environ(dict.fromkeys(ROWS, blank)) == Settings()
    assert value("EMBEDDER_PORT", " 8001\n") == 8001


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]  # that is what is tested


def test_the_real_environment_is_read_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_MAX_REDIRECTS", " 0 ")
    before = dict(os.environ)
    assert Settings.from_environ(os.environ).max_redirects == 0
    assert dict(os.environ) == before


def test_the_page_in_docs_is_what_the_table_says() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "run python scripts/settings_page.py"


# What each kind of value takes, and what it refuses

NUMBERS = [variable for variable, row in ROWS.items() if "whole number" in row.kind.takes]


@pytest.mark.parametrize("variable", NUMBERS)
def test_a_number_is_taken_at_its_edges_and_refused_beyond_them(variable: str) -> None:
    *_, smallest, _, largest = ROWS[variable].kind.takes.split()
    assert [value(variable, edge) for edge in (smallest, largest)] == [int(smallest), int(largest)]
    for beyond in (int(smallest) - 1, int(largest) + 1):
        said = refusal(variable, str(beyond))
        assert said == f"{variable}='{beyond}' can't be used: it takes {ROWS[variable].kind.takes}"


TAKEN: dict[str, dict[str, object]] = {
    "EMBEDDER_MODEL": {"my-model_2:v1.0": "my-model_2:v1.0", f"{'a' * 63}:b": f"{'a' * 63}:b"},
    "EMBEDDER_PRECISION": {"int8": "int8"},
    "EMBEDDER_BATCHING": {"bentoml": "bentoml"},
    "EMBEDDER_FETCH_TIMEOUT_S": {"0.1": 0.1, "2.5": 2.5, "40": 40.0, "40.000000": 40.0},
    "EMBEDDER_CONNECT_TIMEOUT_S": {"0.1": 0.1, "40": 40.0},
    "EMBEDDER_ALLOWED_HOSTS": {
        " A.Example , b.EXAMPLE. ,": ("a.example", "b.example"),
        "img?.*.example.org,my_host": ("img?.*.example.org", "my_host"),
        "10.0.0.7,2606:4700:4700::1111,FD00::?:*": ("10.0.0.7", "2606:4700:4700::1111", "fd00::?:*"),
        "*": ("*",),  # whoever writes it means it
    },
    "EMBEDDER_ALLOWED_PORTS": {" 1 , 65535 ,": {1, 65535}, "80,80": {80}},
    "EMBEDDER_ALLOWED_NETWORKS": {
        "10.1.0.0/16, FD00:0::/8 ,::1": tuple(map(ip_network, ("10.1.0.0/16", "fd00::/8", "::1/128"))),
        "0.0.0.0/0": (ip_network("0.0.0.0/0"),),
    },
    "EMBEDDER_CONTACT": {
        "https://example.org/bot?a=b": "https://example.org/bot?a=b",
        "mailto:jo@example.org": "mailto:jo@example.org",
        "x" * 200: "x" * 200,
    },
    "EMBEDDER_PROXY": {
        text: text for text in ("http://proxy:3128", "http://me:pa%23ss@10.0.0.1:8080/", "http://[::1]:3128")
    },
    "EMBEDDER_API_KEYS": {f" {KEY} , {'!~' * 8},": (KEY, "!~" * 8), "x" * 256: ("x" * 256,)},
    "EMBEDDER_OPEN_ROUTES": {"docs, metrics,info": {"docs", "info", "metrics"}},
    "EMBEDDER_PLAYGROUND": {"0": False, "1": True},
}
# No plain number to a reader: Python's int() and float() take most of them.
NO_NUMBERS = ["many", "-1", "+64", "6.4e1", "1_000", "0x40", "64 64", "64k", "６４", "²", "nan", "9" * 5000]
REFUSED = {
    "EMBEDDER_MODEL": [
        "resnet18",
        "resnet18:",
        ":latest",
        "a:b:c",
        "a b:c",
        "../x:y",
        "A:b",
        "a:ü",
        f"{'a' * 64}:b",
    ],
    "EMBEDDER_PRECISION": ["fp64", "FP32", "fp32,int8"],
    "EMBEDDER_BATCHING": ["adaptive", "eager,bentoml"],
    "EMBEDDER_MAX_URLS": [*NO_NUMBERS, "64.0"],
    "EMBEDDER_FETCH_TIMEOUT_S": [*NO_NUMBERS, "0", "0.099999", "40.000001", ".5", "1.", "1,5", "10s"],
    "EMBEDDER_ALLOWED_HOSTS": [
        *("https://example.org", "example.org/a", "user@example.org", "a b", "a;b", "a.example\nb.example"),
        *("bücher.example", "ｅxample.org", "[::1]", "[a-z].example", ".", "a..b", ".a", "-a.example"),
        *("example.org:443", "*:8080", "10.0.0.7:80", "2606:4700:0:0:0:0:0:1", "2606:4700", "fe80::1%1"),
        *(
            ",",
            " , ,",
            "*.",
            "a.example,*.",
            "*.*.",
        ),  # "$A,$B" and "*.$DOMAIN" of what is unset: no limit at all
    ],
    "EMBEDDER_ALLOWED_PORTS": ["0", "65536", "80,0", "80 443", "http", "８０", ",", "80-90", "*"],
    "EMBEDDER_ALLOWED_NETWORKS": [
        *("10.1.0.1/16", "fd00::1/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10/8", "10.0.0.0/８"),
        *("010.0.0.0/8", "0xa.0.0.0/8", "167772160", "localhost", "10.0.0.0-10.0.0.9", "[fd00::]/8", "*"),
        "fe80::%eth0/64",  # an address with a zone is never dialled, so this could only open something else
    ],
    "EMBEDDER_CONTACT": [
        "x" * 201,
        "jo@example.org (me)",
        "jo smith",
        "a\\b",
        "a\r\nX-Forged: 1",
        "bücher.example",
    ],
    "EMBEDDER_PROXY": [
        *("proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://proxy", "http://:3128"),
        *("http://proxy:3128/path", "http://a b:1", "http://proxy:66666", "http://proxy:0"),
        *(f"http://me:pa{character}ss@proxy:3128" for character in "#/?@ä"),  # which would end the host
    ],
    "EMBEDDER_API_KEYS": ["k" * 15, "k" * 257, f"{KEY},short", f"{KEY} {KEY}", "ключ" * 8, ",", " , "],
    "EMBEDDER_OPEN_ROUTES": ["doc", "/docs", "metrics;info", "health", "all"],
    "EMBEDDER_PLAYGROUND": ["true", "no", "2", "01"],
}


@pytest.mark.parametrize(
    ("variable", "text"), [(variable, text) for variable, texts in TAKEN.items() for text in texts]
)
def test_a_value_that_can_be_used_is_taken(variable: str, text: str) -> None:
    assert value(variable, text) == TAKEN[variable][text]


@pytest.mark.parametrize(
    ("variable", "text"),
    [(variable, text) for variable, texts in REFUSED.items() for text in texts],
    ids=lambda text: ascii(text[:24]),
)
def test_a_value_that_can_not_be_used_is_refused_with_what_is_taken(variable: str, text: str) -> None:
    said = refusal(variable, text)
    shown = "..." if ROWS[variable].secret else text.strip()
    assert said == f"{variable}={shown!r} can't be used: it takes {ROWS[variable].kind.takes}"


@pytest.mark.parametrize(
    ("variable", "secret"), [("EMBEDDER_API_KEYS", "hunter2" * 3), ("EMBEDDER_PROXY", "http://a:hunter2@b:1")]
)
def test_a_secret_is_shown_neither_with_the_settings_nor_in_a_refusal(variable: str, secret: str) -> None:
    assert "hunter2" not in repr(Settings.from_environ({variable: secret}))
    assert "hunter2" not in refusal(variable, f"{secret} \x7f")


# What the machine decides


def test_there_is_a_worker_for_each_core_and_at_least_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 2), (2, 2), (7, 7), (384, 256)):  # two processors of 192 cores are on sale
        monkeypatch.setattr(module, "available_cores", lambda cores=cores: cores)
        assert Settings().workers == workers


@pytest.mark.parametrize("gigabytes", [0.5, 2, 8, 64, 512])
@pytest.mark.parametrize("workers", [1, 8, 64])
def test_what_all_workers_may_take_fits_the_memory_or_is_the_least_that_serves(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, workers: int
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: int(gigabytes * 10**9))
    monkeypatch.setattr(module, "mappable_bytes", lambda: None)
    settings = Settings(workers=workers)
    limits = settings.max_in_flight_bytes, settings.max_decoding_bytes
    together = workers * (WORKER_BYTES + sum(limits))
    assert limits == (64_000_000, 128_000_000) or together <= 0.8 * gigabytes * 10**9
    assert limits <= (1_000_000_000, 2_000_000_000)


@pytest.mark.parametrize("gigabytes", [0.5, 1, 2, 8])
def test_what_a_worker_may_take_fits_what_it_may_map_or_is_the_least_that_serves(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 10**15)
    monkeypatch.setattr(module, "mappable_bytes", lambda: int(gigabytes * 10**9))
    settings = Settings(workers=8)  # each has that limit of its own, however many there are
    limits = settings.max_in_flight_bytes, settings.max_decoding_bytes
    least = limits == (64_000_000, 128_000_000)
    assert least or sum(limits) <= 0.8 * (gigabytes * 10**9 - later_mapped_bytes(settings))
    assert least == (gigabytes < 1)


def test_a_number_counts_more_than_what_the_memory_would_allow() -> None:
    settings = Settings(max_in_flight_bytes=64_000_000, max_decoding_bytes=7_000_000_000)
    assert (settings.max_in_flight_bytes, settings.max_decoding_bytes) == (64_000_000, 7_000_000_000)


# What must go together


@pytest.mark.parametrize(
    ("body", "image", "least"), [(32_000_000, 20_000_000, 64_000_000), (1_000_000, 3_000_000, 3_000_000)]
)
def test_what_one_request_may_bring_must_have_room(body: int, image: int, least: int) -> None:
    environ = {"EMBEDDER_MAX_BODY_BYTES": str(body), "EMBEDDER_MAX_IMAGE_BYTES": str(image)}
    variable = "EMBEDDER_MAX_IN_FLIGHT_BYTES"
    assert Settings.from_environ({**environ, variable: str(least)}).max_in_flight_bytes == least
    with pytest.raises(SettingError, match=f"{variable}='{least - 1}'.*at least {least}:"):
        Settings.from_environ({**environ, variable: str(least - 1)})


def test_there_is_room_for_what_one_request_may_bring_where_the_machine_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 10**9)
    assert Settings(max_body_bytes=200_000_000).max_in_flight_bytes == 400_000_000
    assert Settings(max_image_bytes=200_000_000).max_in_flight_bytes == 200_000_000


def test_a_request_may_not_have_more_urls_than_there_are_places_in_work() -> None:
    assert Settings(max_urls=64, max_in_flight_images=64).max_urls == 64
    with pytest.raises(SettingError, match=r"EMBEDDER_MAX_IN_FLIGHT_IMAGES='63'.*EMBEDDER_MAX_URLS.* 64"):
        Settings(max_urls=64, max_in_flight_images=63)


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("EMBEDDER_MAX_URL", "EMBEDDER_MAX_URLS"),
        ("EMBEDDER_FETCH_TIMEOUT", "EMBEDDER_FETCH_TIMEOUT_S"),
        ("EMBEDDER_ALLOWD_HOSTS", "EMBEDDER_ALLOWED_HOSTS"),
        ("EMBEDDER_API_KEYS_FILE", "EMBEDDER_API_KEYS"),
        ("embedder_api_keys", "EMBEDDER_API_KEYS"),
        ("Embedder_Workers", "EMBEDDER_WORKERS"),
        ("EMBEDDER_COLOUR_OF_THE_SKY", "EMBEDDER_"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_with_the_nearest_that_is(name: str, meant: str) -> None:
    said = refusal(name, "secret-17")
    assert said.startswith(f"{name}=")
    assert f"did you mean {meant}" in said
    assert "secret-17" not in said  # the value may be a key


def test_what_kubernetes_sets_beside_services_of_that_name_is_left_alone() -> None:
    environ = {
        "EMBEDDER_SERVICE_HOST": "10.96.0.17",
        "EMBEDDER_SERVICE_PORT": "8000",
        "EMBEDDER_SERVICE_PORT_HTTP": "8000",
        "EMBEDDER_PORT_8000_TCP": "tcp://10.96.0.17:8000",
        "EMBEDDER_PORT_8000_TCP_ADDR": "10.96.0.17",
        # Beside Services called "embedder-model" and "embedder-api".
        "EMBEDDER_MODEL_SERVICE_HOST": "10.96.0.19",
        "EMBEDDER_MODEL_PORT": "tcp://10.96.0.19:80",
        "EMBEDDER_API_PORT": "tcp://10.96.0.18:80",
        "XEMBEDDER_MAX_URLS": "many",
        "MAX_URLS": "many",
    }
    assert Settings.from_environ(environ) == Settings()
