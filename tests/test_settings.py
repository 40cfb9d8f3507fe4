# ruff: noqa: RUF001 - digits and letters that only look like ASCII are part of what is tested
"""Every knob: its default, its edges, what it refuses, and how the refusal reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from ipaddress import ip_network
from pathlib import Path

import pytest

from embedder.settings import KNOBS, LATER_MAPPED_BYTES, WORKER_BYTES, Knob, SettingError, Settings

MAX_15_DIGITS = "9" * 15

# The contract's defaults; what depends on the machine or is left open there has tests of its own.
DEFAULTS = {
    "model": "resnet18:latest",
    "precision": "fp32",
    "port": 8000,
    "max_batch_size": 32,
    "max_urls": 64,
    "max_body_bytes": 32_000_000,
    "max_image_bytes": 20_000_000,
    "max_image_pixels": 50_000_000,
    "fetch_timeout_s": 10.0,
    "max_redirects": 3,
    "allowed_hosts": (),
    "allowed_ports": frozenset({80, 443}),
    "api_keys": (),
    "open_routes": frozenset(),
    "allowed_networks": (),
}
VARIABLES = {
    "EMBEDDER_MODEL",
    "EMBEDDER_PRECISION",
    "EMBEDDER_WORKERS",
    "EMBEDDER_THREADS",
    "EMBEDDER_PORT",
    "EMBEDDER_MAX_BATCH_SIZE",
    "EMBEDDER_MAX_URLS",
    "EMBEDDER_MAX_BODY_BYTES",
    "EMBEDDER_MAX_IMAGE_BYTES",
    "EMBEDDER_MAX_IMAGE_PIXELS",
    "EMBEDDER_MAX_IN_FLIGHT_IMAGES",
    "EMBEDDER_MAX_IN_FLIGHT_BYTES",
    "EMBEDDER_MAX_DECODING_BYTES",
    "EMBEDDER_FETCH_TIMEOUT_S",
    "EMBEDDER_MAX_REDIRECTS",
    "EMBEDDER_ALLOWED_HOSTS",
    "EMBEDDER_ALLOWED_PORTS",
    "EMBEDDER_CACHE_ENTRIES",
    "EMBEDDER_API_KEYS",
    "EMBEDDER_OPEN_ROUTES",
    "EMBEDDER_ALLOWED_NETWORKS",
}
RANGE = re.compile(r"([0-9.]+) to ([0-9.]+)$")
WHOLE = [knob for knob in KNOBS.values() if RANGE.search(knob.takes) and "whole" in knob.takes]
# Some need others: what one request may bring must have room in work.
ROOM = {
    "EMBEDDER_MAX_URLS": "1",
    "EMBEDDER_MAX_BODY_BYTES": "1000",
    "EMBEDDER_MAX_IMAGE_BYTES": "1000",
    "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "100000",
    "EMBEDDER_MAX_IN_FLIGHT_BYTES": "1000000000000",
}


def read(**environ: str) -> Settings:
    return Settings.from_environ(environ)


def value_of(knob: Knob, text: str) -> object:
    settings = Settings.from_environ({**ROOM, knob.variable: text})
    return getattr(settings, knob.variable.removeprefix("EMBEDDER_").lower())


def refusal(variable: str, text: str) -> str:
    with pytest.raises(SettingError) as caught:
        Settings.from_environ({variable: text})
    assert caught.value.variable == variable
    return str(caught.value)


# --- the table ----------------------------------------------------------------------------------------------


def test_an_empty_environment_gives_the_contracts_defaults() -> None:
    settings = read()
    assert {field: getattr(settings, field) for field in DEFAULTS} == DEFAULTS


def test_the_knobs_are_what_users_rely_on() -> None:
    assert {knob.variable for knob in KNOBS.values()} == VARIABLES


def test_each_field_is_a_row_of_the_table_in_the_same_order() -> None:
    assert [field.name for field in fields(Settings)] == list(KNOBS)
    assert [knob.variable for knob in KNOBS.values()] == [f"EMBEDDER_{name.upper()}" for name in KNOBS]


def test_each_default_has_the_type_that_its_field_states() -> None:
    settings = read()
    stated = {field.name: str(field.type).split("[")[0] for field in fields(Settings)}
    assert {name: type(getattr(settings, name)).__name__ for name in stated} == stated


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_takes_its_own_default_and_says_what_it_is_for(name: str) -> None:
    knob = KNOBS[name]
    if knob.default != "auto":
        assert value_of(knob, knob.default) == knob.parse(knob.default)
    assert knob.meaning
    assert knob.takes


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        read().port = 1  # type: ignore[misc]  # that is what is tested


def test_there_are_at_least_two_workers_and_by_default_one_for_each_core() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 2 <= read().workers <= max(2, cores)


def test_a_machine_of_384_cores_starts_with_the_default() -> None:
    # Two processors of 192 cores are on sale; a default must never be refused.
    program = (
        "import os; os.sched_getaffinity = lambda pid: range(384); os.cpu_count = lambda: 384\n"
        "from embedder.settings import Settings; print(Settings.from_environ({}).workers)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- blank --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " ", "\t\n "])
def test_a_blank_variable_has_its_default(blank: str) -> None:
    assert Settings.from_environ(dict.fromkeys(VARIABLES, blank)) == read()


def test_blanks_around_a_value_are_dropped() -> None:
    assert read(EMBEDDER_PORT=" 8001\n").port == 8001


# --- numbers ------------------------------------------------------------------------------------------------


def test_the_knobs_of_whole_numbers_were_found() -> None:
    assert len(WHOLE) == 13


@pytest.mark.parametrize("knob", WHOLE, ids=lambda knob: knob.variable)
def test_the_smallest_and_largest_number_of_the_range_are_taken(knob: Knob) -> None:
    for text in RANGE.search(knob.takes).groups():  # type: ignore[union-attr]  # WHOLE has those that match
        assert value_of(knob, text) == int(text)


@pytest.mark.parametrize("knob", WHOLE, ids=lambda knob: knob.variable)
def test_one_below_and_one_above_the_range_are_refused(knob: Knob) -> None:
    smallest, largest = map(int, RANGE.search(knob.takes).groups())  # type: ignore[union-attr]  # as above
    for number in (smallest - 1, largest + 1):
        assert str(number) in refusal(knob.variable, str(number))
        assert knob.takes in refusal(knob.variable, str(number))


@pytest.mark.parametrize("knob", WHOLE, ids=lambda knob: knob.variable)
@pytest.mark.parametrize(
    "text",
    [
        "many",
        "-1",
        "+64",
        "64.0",
        "6.4e1",
        "1_000",
        "0x40",
        "0b11",
        "64 64",
        "64,64",
        "64k",
        "64MB",
        "١٢٣",
        "６４",
        "²",
        "½",
        "nan",
        "inf",
        "None",
        "true",
        MAX_15_DIGITS,
        "9" * 16,
        "9" * 5000,
        "64;",
        "$(64)",
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_what_is_no_plain_whole_number_is_refused(knob: Knob, text: str) -> None:
    assert refusal(knob.variable, text) == f"{knob.variable}={text!r} can't be used: it takes {knob.takes}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.1", 0.1), ("0.100001", 0.100001), ("2.5", 2.5), ("1", 1.0), ("40", 40.0), ("40.0", 40.0)],
)
def test_seconds_are_taken_from_0_1_to_40(text: str, seconds: float) -> None:
    assert read(EMBEDDER_FETCH_TIMEOUT_S=text).fetch_timeout_s == seconds


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0.0",
        "0.09",
        "0.099999",
        "40.000001",
        "40.1",
        "41",
        "1e1",
        "-1",
        "+1",
        ".5",
        "1.",
        "1,5",
        "1_0",
        "nan",
        "inf",
        "-inf",
        "infinity",
        "10s",
        "１０",
        "1.2.3",
        "0x1",
        "9" * 400,
    ],
    ids=lambda text: text[:16],
)
def test_what_is_no_plain_number_of_seconds_in_the_range_is_refused(text: str) -> None:
    said = refusal("EMBEDDER_FETCH_TIMEOUT_S", text)
    assert said == f"EMBEDDER_FETCH_TIMEOUT_S={text!r} can't be used: it takes seconds, 0.1 to 40"


@pytest.mark.parametrize("in_flight", [63, 64])
def test_a_request_may_not_have_more_urls_than_there_are_places_in_work(in_flight: int) -> None:
    environ = {"EMBEDDER_MAX_URLS": "64", "EMBEDDER_MAX_IN_FLIGHT_IMAGES": str(in_flight)}
    if in_flight == 64:
        assert Settings.from_environ(environ).max_urls == 64
    else:
        with pytest.raises(SettingError, match=r"EMBEDDER_MAX_IN_FLIGHT_IMAGES='63'.*EMBEDDER_MAX_URLS.* 64"):
            Settings.from_environ(environ)


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["resnet18:latest", "resnet18:abc123", "my-model_2:v1.0", "a:b", f"{'a' * 63}:b"]
)
def test_a_tag_of_the_model_store_is_taken(text: str) -> None:
    assert read(EMBEDDER_MODEL=text).model == text


@pytest.mark.parametrize(
    "text",
    [
        "resnet18",
        "resnet18:",
        ":latest",
        "a:b:c",
        "a b:c",
        "../x:latest",
        "/x:y",
        "A:b",
        "a:ü",
        "a:-",
        f"{'a' * 64}:b",
    ],
)
def test_what_is_no_tag_of_the_model_store_is_refused(text: str) -> None:
    assert f"EMBEDDER_MODEL={text!r}" in refusal("EMBEDDER_MODEL", text)


@pytest.mark.parametrize("text", ["fp64", "FP32", "int4", "float32", "fp32,int8", "32"])
def test_an_unknown_precision_is_refused(text: str) -> None:
    assert "it takes fp32 or int8" in refusal("EMBEDDER_PRECISION", text)


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", [2, 4, 8, 24, 64, 512])
@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_what_all_workers_may_take_fits_the_memory_or_is_the_least_that_serves(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, workers: int
) -> None:
    monkeypatch.setattr("embedder.settings.available_memory_bytes", lambda: gigabytes * 10**9)
    settings = read(EMBEDDER_WORKERS=str(workers))
    limits = settings.max_in_flight_bytes, settings.max_decoding_bytes
    together = workers * (WORKER_BYTES + sum(limits))
    assert limits == (64_000_000, 128_000_000) or together <= 0.8 * gigabytes * 10**9
    assert limits <= (1_000_000_000, 2_000_000_000)


@pytest.mark.parametrize("gigabytes", [0.5, 1, 2, 8])
@pytest.mark.parametrize("workers", [1, 8])
def test_what_a_worker_may_take_fits_what_it_may_map_or_is_the_least_that_serves(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, workers: int
) -> None:
    monkeypatch.setattr("embedder.settings.available_memory_bytes", lambda: 10**15)
    monkeypatch.setattr("embedder.settings.mappable_bytes", lambda: int(gigabytes * 10**9))
    settings = read(EMBEDDER_WORKERS=str(workers))
    limits = settings.max_in_flight_bytes, settings.max_decoding_bytes
    # Each worker has its own: however many there are.
    assert limits == (64_000_000, 128_000_000) or LATER_MAPPED_BYTES + sum(limits) <= 0.8 * gigabytes * 10**9
    assert (limits > (64_000_000, 128_000_000)) == (gigabytes >= 1)


def test_a_number_goes_before_what_the_memory_would_allow() -> None:
    assert read(EMBEDDER_MAX_IN_FLIGHT_BYTES="64000000").max_in_flight_bytes == 64_000_000
    assert read(EMBEDDER_MAX_DECODING_BYTES="7000000000").max_decoding_bytes == 7_000_000_000


@pytest.mark.parametrize(
    ("body", "image", "least"), [(32_000_000, 20_000_000, 64_000_000), (1_000_000, 3_000_000, 3_000_000)]
)
def test_what_one_request_may_bring_must_have_room(body: int, image: int, least: int) -> None:
    environ = {"EMBEDDER_MAX_BODY_BYTES": str(body), "EMBEDDER_MAX_IMAGE_BYTES": str(image)}
    assert read(**environ, EMBEDDER_MAX_IN_FLIGHT_BYTES=str(least)).max_in_flight_bytes == least
    with pytest.raises(SettingError, match=f"EMBEDDER_MAX_IN_FLIGHT_BYTES='{least - 1}'.*at least {least}:"):
        read(**environ, EMBEDDER_MAX_IN_FLIGHT_BYTES=str(least - 1))


def test_there_is_room_for_what_one_request_may_bring_where_nobody_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedder.settings.available_memory_bytes", lambda: 10**9)
    assert read(EMBEDDER_MAX_BODY_BYTES="200000000").max_in_flight_bytes == 400_000_000
    assert read(EMBEDDER_MAX_IMAGE_BYTES="200000000").max_in_flight_bytes == 200_000_000


# --- keys ---------------------------------------------------------------------------------------------------

KEY = "k" * 16


@pytest.mark.parametrize(
    ("text", "keys"),
    [(KEY, (KEY,)), (f" {KEY} , {'!~' * 8},", (KEY, "!~" * 8)), ("x" * 256, ("x" * 256,)), ("", ())],
)
def test_keys_of_16_to_256_characters_are_taken(text: str, keys: tuple[str, ...]) -> None:
    assert read(EMBEDDER_API_KEYS=text).api_keys == keys


@pytest.mark.parametrize(
    "text", ["k" * 15, "k" * 257, f"{KEY},short", f"{KEY} {KEY}", "ключ" * 8, ",", " , "]
)
def test_what_is_no_key_is_refused_and_does_not_mean_no_key(text: str) -> None:
    refusal("EMBEDDER_API_KEYS", text)


def test_keys_are_not_shown_with_the_settings() -> None:
    assert KEY not in repr(read(EMBEDDER_API_KEYS=KEY))


@pytest.mark.parametrize("text", ["doc", "/docs", "metrics;info", "health", "all"])
def test_an_unknown_open_route_is_refused(text: str) -> None:
    assert "docs, info and metrics" in refusal("EMBEDDER_OPEN_ROUTES", text)


def test_a_refused_key_does_not_end_up_in_the_log() -> None:
    assert "hunter2" not in refusal("EMBEDDER_API_KEYS", "hunter2")


# --- lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("res.cloudinary.com", ("res.cloudinary.com",)),
        ("res.cloudinary.com,*.example.org", ("res.cloudinary.com", "*.example.org")),
        (" A.Example , b.EXAMPLE. ,", ("a.example", "b.example")),
        ("img?.example.org", ("img?.example.org",)),
        ("xn--bcher-kva.example", ("xn--bcher-kva.example",)),
        ("10.0.0.7,2606:4700:4700::1111", ("10.0.0.7", "2606:4700:4700::1111")),
        ("my_host", ("my_host",)),
        ("*", ("*",)),  # whoever writes it means it
        ("*.example.org.", ("*.example.org",)),
        ("*.*,*-img*.example.org", ("*.*", "*-img*.example.org")),
        ("2606:*,*::1,::,FD00::?:*", ("2606:*", "*::1", "::", "fd00::?:*")),
    ],
)
def test_hosts_are_lower_case_globs_without_the_roots_dot(text: str, hosts: tuple[str, ...]) -> None:
    assert read(EMBEDDER_ALLOWED_HOSTS=text).allowed_hosts == hosts


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org",
        "example.org/a",
        "user@example.org",
        "a b",
        "a;b",
        "bücher.example",
        "[::1]",
        "[a-z].example",
        "a.example,b c",
        ".",
        "a,.",
        "!a",
        "a.example\nb.example",
        "ｅxample.org",
        "a..b",
        ".a",
        ".*",
        "*..example.org",
        "example.org..",
        "-a.example",
        "*-.example.org",
        "example.org:443",
        "example.org:",
        "*.example.org:8080",
        "*:8080",
        "*:",
        "10.0.0.7:80",
        "cafe:80",
        "::1.",
        "2606:4700:0:0:0:0:0:1",
        "2606:4700",
        "::g",
        "fe80::1%1",
    ],
)
def test_what_can_never_match_a_host_is_refused(text: str) -> None:
    assert "host names" in refusal("EMBEDDER_ALLOWED_HOSTS", text)


@pytest.mark.parametrize("text", [",", " , ,"])
def test_a_list_of_hosts_with_nothing_but_commas_is_refused_and_does_not_mean_any_host(text: str) -> None:
    # "$A,$B" with both unset: who wrote it wanted a limit.
    assert "host names" in refusal("EMBEDDER_ALLOWED_HOSTS", text)


@pytest.mark.parametrize("text", ["*.", "a.example,*.", "?*.", "*.*."])
def test_a_wildcard_before_nothing_but_the_roots_dot_is_refused_and_does_not_mean_any_host(text: str) -> None:
    # "*.$DOMAIN" with DOMAIN unset.
    assert "host names" in refusal("EMBEDDER_ALLOWED_HOSTS", text)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("1", {1}),
        ("65535", {65535}),
        ("80,443,8080", {80, 443, 8080}),
        (" 80 , 443 ,", {80, 443}),
        ("80,80", {80}),
    ],
)
def test_ports_are_taken_from_1_to_65535(text: str, ports: set[int]) -> None:
    assert read(EMBEDDER_ALLOWED_PORTS=text).allowed_ports == ports


@pytest.mark.parametrize(
    "text", ["0", "65536", "80,0", "80 443", "80;443", "http", "-80", "８０", "8_0", ",", "80-90", "*"]
)
def test_what_is_no_list_of_ports_is_refused(text: str) -> None:
    assert "port numbers" in refusal("EMBEDDER_ALLOWED_PORTS", text)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.1.0.0/16", ["10.1.0.0/16"]),
        ("fd00::/8", ["fd00::/8"]),
        ("10.1.0.0/16, fd00::/8 ,192.168.7.7", ["10.1.0.0/16", "fd00::/8", "192.168.7.7/32"]),
        ("::1", ["::1/128"]),
        ("0.0.0.0/0", ["0.0.0.0/0"]),
        ("FD00:0::/8", ["fd00::/8"]),
    ],
)
def test_networks_of_both_families_are_taken(text: str, networks: list[str]) -> None:
    assert read(EMBEDDER_ALLOWED_NETWORKS=text).allowed_networks == tuple(map(ip_network, networks))


@pytest.mark.parametrize(
    "text",
    [
        "10.1.0.1/16",
        "fd00::1/8",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "/8",
        "10/8",
        "10.0/16",
        "１０.0.0.0/8",
        "10.0.0.0/８",
        "10.0.0.0/1_6",
        "1_0.0.0.0/8",
        "010.0.0.0/8",
        "0xa.0.0.0/8",
        "167772160",
        "localhost",
        "example.org",
        "10.0.0.0/8/8",
        "10.0.0.0-10.0.0.9",
        "10.0.0.0/8 fd00::/8",
        "[fd00::]/8",
        "*",
        "10.1.0.0/16,10.2.0.1/16",
        "fd00::/８",
        "10.0.0.256/32",
    ],
)
def test_what_is_no_network_is_refused(text: str) -> None:
    said = refusal("EMBEDDER_ALLOWED_NETWORKS", text)
    assert repr(text) in said
    assert "networks like 10.1.0.0/16 or fd00::/8" in said


def test_a_network_with_a_zone_is_refused() -> None:
    # An address with a zone is never dialled, so this could only open something else.
    assert "networks like" in refusal("EMBEDDER_ALLOWED_NETWORKS", "fe80::%eth0/64")


# --- names --------------------------------------------------------------------------------------------------


def slips(name: str) -> set[str]:
    """`name` with one letter left out, doubled, replaced, or exchanged with the next."""
    near: set[str] = set()
    for i in range(len("EMBEDDER_"), len(name)):
        near |= {name[:i] + name[i + 1 :], name[: i + 1] + name[i:], name[:i] + "Q" + name[i + 1 :]}
        near.add(name[:i] + name[i : i + 2][::-1] + name[i + 2 :])
    return near - {name}


@pytest.mark.parametrize("variable", sorted(VARIABLES))
def test_a_slip_of_the_finger_in_a_name_is_refused_with_the_right_name(variable: str) -> None:
    right = KNOBS[variable.removeprefix("EMBEDDER_").lower()].default
    assert [slip for slip in slips(variable) if f"{variable}?" not in refusal(slip, right)] == []


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("EMBEDDER_MAX_URL", "EMBEDDER_MAX_URLS"),
        ("EMBEDDER_FETCH_TIMEOUT", "EMBEDDER_FETCH_TIMEOUT_S"),
        ("EMBEDDER_ALLOWED_HOST", "EMBEDDER_ALLOWED_HOSTS"),
        ("EMBEDDER_ALLOW_HOSTS", "EMBEDDER_ALLOWED_HOSTS"),
        ("EMBEDDER_API_KEY", "EMBEDDER_API_KEYS"),
        ("EMBEDDER_WORKER", "EMBEDDER_WORKERS"),
        ("EMBEDDER_HOSTS", "EMBEDDER_ALLOWED_HOSTS"),
        ("EMBEDDER_NETWORKS", "EMBEDDER_ALLOWED_NETWORKS"),
        ("EMBEDDER_KEYS", "EMBEDDER_API_KEYS"),
        ("EMBEDDER_MAX_PIXELS", "EMBEDDER_MAX_IMAGE_PIXELS"),
        ("EMBEDDER_TIMEOUT_S", "EMBEDDER_FETCH_TIMEOUT_S"),
        ("EMBEDDER_ALLOWED_NETWORK", "EMBEDDER_ALLOWED_NETWORKS"),
        ("EMBEDDER_API_KEYS_FILE", "EMBEDDER_API_KEYS"),
        ("EMBEDDER_SECRET_API_KEYS", "EMBEDDER_API_KEYS"),
        ("EMBEDDER_MAX_IMAGE_BYTES_MB", "EMBEDDER_MAX_IMAGE_BYTES"),
        ("embedder_api_keys", "EMBEDDER_API_KEYS"),
        ("Embedder_Workers", "EMBEDDER_WORKERS"),
        ("embedder_keys", "EMBEDDER_API_KEYS"),
    ],
)
def test_a_likely_wrong_name_is_refused_with_the_right_name(slip: str, meant: str) -> None:
    said = refusal(slip, "17")
    assert slip in said
    assert f"{meant}?" in said
    assert "17" not in said  # the value may be a key


@pytest.mark.parametrize("slip", ["EMBEDDER_MAX_URL", "EMBEDDER_ALLOWED_HOST"])
def test_a_wrong_name_is_refused_beside_the_right_one_too(slip: str) -> None:
    with pytest.raises(SettingError, match=slip):
        Settings.from_environ({"EMBEDDER_MAX_URLS": "8", "EMBEDDER_ALLOWED_HOSTS": "a.example", slip: "9"})


def test_other_variables_are_left_alone() -> None:
    # Kubernetes gives these to every container beside a service called "embedder".
    environ = {
        "EMBEDDER_SERVICE_HOST": "10.96.0.17",
        "EMBEDDER_SERVICE_PORT": "8000",
        "EMBEDDER_SERVICE_PORT_HTTP": "8000",
        "EMBEDDER_PORT_8000_TCP": "tcp://10.96.0.17:8000",
        "EMBEDDER_PORT_8000_TCP_PROTO": "tcp",
        "EMBEDDER_PORT_8000_TCP_PORT": "8000",
        "EMBEDDER_PORT_8000_TCP_ADDR": "10.96.0.17",
        # And these beside one called "embedder-model".
        "EMBEDDER_MODEL_SERVICE_HOST": "10.96.0.19",
        "EMBEDDER_MODEL_PORT": "tcp://10.96.0.19:80",
        "EMBEDDER_API_PORT": "tcp://10.96.0.18:80",
        "MAX_URLS": "many",
        "XEMBEDDER_MAX_URLS": "many",
        "PATH": "/bin",
    }
    assert Settings.from_environ(environ) == read()


def test_the_environment_is_only_read() -> None:
    environ = {"EMBEDDER_PORT": " 8001 "}
    Settings.from_environ(environ)
    assert environ == {"EMBEDDER_PORT": " 8001 "}


def test_the_real_environment_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_MAX_REDIRECTS", "0")
    assert Settings.from_environ(os.environ).max_redirects == 0
