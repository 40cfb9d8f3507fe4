# ruff: noqa: RUF001 - characters that only look like ASCII are part of what is tested
"""Which URLs may be fetched, and that Python, yarl and we read the admitted ones alike."""

from __future__ import annotations

import re
import socket
import unicodedata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from yarl import URL

from embedder.errors import URLNotAllowed
from embedder.fetch.addresses import AddressPolicy, is_public
from embedder.fetch.urls import URLPolicy

POLICY = URLPolicy()
BASE = POLICY.admit("http://a/b/c/d;p?q")


def each(words: str) -> list[str]:
    return words.split()


def refused(text: str, policy: URLPolicy = POLICY, *, base: URL | None = None) -> bool:
    try:
        url = policy.admit(text) if base is None else policy.follow(base, text)
    except URLNotAllowed:
        return True
    assert_everybody_reads(url, policy)
    return False


def assert_everybody_reads(url: URL, policy: URLPolicy = POLICY) -> None:
    """Python, yarl and we agree about `url`, and nothing in it is left to interpretation."""
    text = str(url)
    python, again = urlsplit(text), URL(text)
    port = python.port or {"http": 80, "https": 443}[python.scheme]
    assert (url.scheme, url.raw_host, url.port) == (again.scheme, again.raw_host, again.port)
    assert (url.scheme, url.raw_host, url.port) == (python.scheme, python.hostname, port)
    assert [url.user, url.password, python.username, python.password, url.fragment] == [None] * 4 + [""]
    assert not set("@#") & set(python.netloc + text.partition("#")[1])
    assert text.isascii()
    assert text.isprintable()
    assert port in policy.allowed_ports
    assert str(policy.admit(text)) == text
    assert url.host  # yarl decodes "xn--" only here, and must not raise
    host = url.raw_host or ""
    assert host == host.lower() != ""
    try:
        address = ip_address(host)
    except ValueError:
        with pytest.raises(OSError, match="illegal"):  # no name is one of the C library's legacy addresses
            socket.inet_aton(host)
    else:
        assert policy.addresses.allows(address)
        assert host == str(address)


# What is admitted


def punycode(text: str) -> str:
    return f"xn--{text.encode('punycode').decode()}"


CLOUDINARY = "https://res.cloudinary.com/demo/image"
ADMITTED = {
    # Path and query stay byte for byte, escapes too.
    f"{CLOUDINARY}/upload/w_400,h_300,c_fill,g_auto/v1312461204/sample.jpg": None,
    f"{CLOUDINARY}/upload/l_text:Arial_80:It%2527s%20%252C%2520here/sample.jpg": None,
    f"{CLOUDINARY}/fetch/https://example.org/a.jpg?x=1&y=2": None,
    f"{CLOUDINARY}/fetch/https%3A%2F%2Fexample.org%2Fa.jpg%3Fx%3D1": None,
    "http://example.org/%2520%2f%2F/%/%zz%1/a%00b": None,
    "http://example.org/%0d%0aHost:%20x": None,
    "http://example.org/?url=http://user@10.0.0.1:22/&q=%23%26+%2B&redirect=//x?y": None,
    # What no URL may hold becomes its percent-encoded UTF-8; joiners, unassigned and private characters too.
    "http://example.org/👩\u200d🚀?q=ü%C3%BC": "http://example.org/%F0%9F%91%A9%E2%80%8D%F0%9F%9A%80?q=%C3%BC%C3%BC",
    "http://example.org/\u0378\ue000": "http://example.org/%CD%B8%EE%80%80",
    "http://example.org/<a>{b}^`|\"'": "http://example.org/%3Ca%3E%7Bb%7D%5E%60%7C%22'",
    # Dots in the path, escaped once or not, are followed as by browsers.
    "http://example.org/../../a/../b/./c": "http://example.org/b/c",
    "http://example.org/a//../b/..": "http://example.org/a/",
    "http://example.org/a/%2E%2e/.%2E/b/%2e": "http://example.org/b/",
    "http://example.org/a/%252e%252e/..%2fb/.../..c?b/../d": None,
    # A fragment and an empty query are dropped; the host ends at the first of / ? #.
    "https://example.org/a?b#c?d#": "https://example.org/a?b",
    "http://example.org?": "http://example.org/",
    "http://example.org?@127.0.0.1/": "http://example.org/?@127.0.0.1/",
    "http://example.org#@127.0.0.1/": "http://example.org/",
    "http://example.org/@127.0.0.1/": None,
    "http://example.org/..//127.0.0.1/": "http://example.org//127.0.0.1/",
    # Scheme, host and port are written in one way.
    "hTTpS://Example.ORG/A?B": "https://example.org/A?B",
    "http://example.org:80/a": "http://example.org/a",
    "http://example.org:/a": "http://example.org/a",
    "http://[2606:4700:4700::1111]:/": "http://[2606:4700:4700::1111]/",
    f"http://example.org:{'0' * 18}80/a": "http://example.org/a",
    # Joiners within a word, as IDNA 2008 and so all browsers have them (RFC 5892 appendix A).
    "http://نامه\u200cای.com/": f"http://{punycode('نامه' + chr(0x200c) + 'ای')}.com/",
    "http://क्\u200dष.example/": f"http://{punycode('क्' + chr(0x200d) + 'ष')}.example/",
    # Names of files have invisible characters: a soft hyphen, a zero-width space, marks of direction.
    "http://example.org/a\u00adb\u200b.jpg?\u2028\u200e": "http://example.org/a%C2%ADb%E2%80%8B.jpg?%E2%80%A8%E2%80%8E",
    "https://example.org:00443": "https://example.org/",  # RFC 3986 section 3.2.3: port = *DIGIT
    "http://example.org:443/a": None,
    "http://example.org./a": None,
    "http://my_host-1.1.example/": None,
    "http://93.184.216.34/": None,
    "http://[2606:4700:4700::1111]:443/a": None,
    "https://[2606:4700:4700:0:0:0:0:1111]:443/": "https://[2606:4700:4700::1111]/",
    "http://[2606:4700:4700::1.2.3.4]/": "http://[2606:4700:4700::102:304]/",
    # WHATWG URL, "ends in a number": these last labels are none.
    **{f"http://{host}/": None for host in each("8.8.8.8e0 8.8.8.1_0 8.8.8.0xg 1.2.3.4.example 1a 0x7f.example")},
    # RFC 3492 gives bücher; the others are the same algorithm, by Python's own codec.
    "http://BÜCHER.Example/": "http://xn--bcher-kva.example/",
    "http://bu\u0308cher.example/": "http://xn--bcher-kva.example/",
    "http://XN--BCHER-KVA.example/": "http://xn--bcher-kva.example/",
    "http://例。рф/": f"http://{punycode('例')}.{punycode('рф')}/",
    "http://straße.example/": f"http://{punycode('straße')}.example/",  # IDNA 2008 keeps ß
    # UTS 46 maps a capital sigma to the same letter wherever it stands, and leaves the final one alone.
    "http://ΟΔΟΣ-1.gr/": f"http://{punycode('οδοσ-1')}.gr/",
    "http://οδος-1.gr/": f"http://{punycode('οδος-1')}.gr/",
    "http://ｅｘａｍｐｌｅ.org/": "http://example.org/",
    # UTS 46 as browsers apply it (WHATWG URL, "domain to ASCII"): symbols, and hyphens anywhere.
    "http://☃.example/": f"http://{punycode('☃')}.example/",
    "http://i\u2764\ufe0f.example/": f"http://{punycode('i❤')}.example/",
    "http://😉.example/": f"http://{punycode('😉')}.example/",
    "http://é-.-é.example/": f"http://{punycode('é-')}.{punycode('-é')}.example/",
    "http://-a.example/": None,
    "http://a-.r3---sn-4g5e.example/": None,
    "http://my_shop-.example/": None,
    # Blanks within a path or query: escaped as browsers escape them.
    "http://example.org/my photo.jpg?a b": "http://example.org/my%20photo.jpg?a%20b",
    "http://example.org/4.42\u202fPM\u00a0\u3000.png": "http://example.org/4.42%E2%80%AFPM%C2%A0%E3%80%80.png",
}  # fmt: skip


@pytest.mark.parametrize("text", ADMITTED, ids=ascii)
def test_a_url_is_admitted_in_one_form(text: str) -> None:
    expected = ADMITTED[text] or text
    for url in (POLICY.admit(text), POLICY.follow(BASE, text), POLICY.admit(expected)):
        assert str(url) == expected
        assert_everybody_reads(url)


# RFC 3986 appendix A: pchar, "/" and "?", and the "%" of escapes. "[" and "]" stand in real queries too.
UNTOUCHED = "abcXYZ019-._~!$&'()*+,;=:@/?%[]"
DOT_SEGMENT = re.compile(r"(^|/)(\.|%2e){1,2}(/|$)", re.IGNORECASE)


@given(st.text(UNTOUCHED) | st.text(st.characters(min_codepoint=0x21, exclude_characters="\\#"), max_size=50))
@settings(deadline=None, max_examples=400)
def test_legal_characters_are_kept_and_others_become_their_percent_encoded_utf8(text: str) -> None:
    def escaped(character: str) -> str:
        if character in UNTOUCHED or (character.isascii() and character.isalnum()):
            return character
        return "".join(f"%{byte:02X}" for byte in character.encode())

    path, mark, query = text.partition("?")
    assume(not DOT_SEGMENT.search(path))  # they are resolved
    assume(text == text.rstrip())  # as are blanks around a URL
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        assert refused("http://example.org/" + text)
        return
    expected = "".join(map(escaped, path + mark * bool(query) + query))  # an empty query is dropped
    assert POLICY.admit("http://example.org/" + text).raw_path_qs == "/" + expected


# What is refused

REFUSED_HOSTS = {
    "not public": "127.0.0.1 169.254.169.254 [0:0:0:0:0:0:0:1] [64:ff9b::127.0.0.1] [::ffff:10.1.0.1]",
    "an IPv6 zone": "[fe80::1%25eth0] [fe80::1%eth0] [2606:4700::1%25] [2606:4700::1%1]",
    "brackets around or missing from anything but an IPv6 address": """
        [] [:] [:::] [1] [1.1.1.1] [example.org] [v1.fe80::a] [2606:4700::1 2606:4700::1] 2606:4700::1
        [[2606:4700::1]] [2606:4700::1]example.org example.org[2606:4700::1] [2606:4700::1]. [2606:4700::1/64]
        [2606:4700::11111] [2606:4700::1.2.3.04] [2606:4700::１]""",
    # 127.0.0.1 and 8.8.8.8: an odd spelling is refused wherever it leads. Legal numbers have a test below.
    "a number, but no dotted quad": """
        0 0x 256 4294967296 8.8.8.8. 8.8.8.8.. 8.8.8. .8.8.8.8 8..8.8 8.8.8.8.8 256.1.1.1 8.8.8.8.0x
        example.1 example.0x7f example.08 +8.8.8.8""",
    "escapes": "%31%32%37.0.0.1 127%2e0%2e0%2e1 %6cocalhost example%2eorg % example.org%00",
    "digits and dots that are not ASCII": """
        １２７.１.０.１ 127。0。0。1 127．0．0．1 ①②⑦.⓪.⓪.① 𝟏𝟐𝟕.𝟎.𝟎.𝟏 ２１３０７０６４３３ ０x7f000001 127.0.0.1。
        ８.８.８.８ 8.8.8.8\ufe0f \u0661\u0662\u0667.0.0.1 example.org\u2488 é.1""",
    "no name": """. .. .example.org example..org example.org.. *.example.org
        example.org,10.0.0.1 a!b.example a&b.example a'b.example (a).example a;b.example a~b.example <a>.example
        a|b.example {a}.example xn-- xn--.example a.xn-- xn---.example""",
    # ℀ is a/c; then slash, number sign, question mark, at, colons, brackets, backslash, (a)(1).
    "characters that become an URL's own": """
        example.org\u2100.example example.org\uff0f.example example.org\uff03.example example.org\uff1f.example
        user\uff20example.org example.org\uff1a80 example.org\ufe5580 \uff3b::1\uff3d example\uff3c.org
        \u24b6\u2474.example""",
    # Joiners, a combining mark first, both directions, too long, empty labels, noncharacters.
    "not allowed by UTS 46": f"""
        a\u0300\u200d.example a\u200cb.example \U0001f469\u200d\U0001f680.example \u0301a.example אa1ب.example
        {"é" * 64}.example é..example 。 é.xn--a é_é\uffff.example""",
    "a user name": """
        user@example.org user:password@example.org @example.org example.org@ @ example.org@127.0.0.1
        127.0.0.1:80@example.org a@b@example.org [2606:4700::1]@example.org example.org%40example.com""",
    # 65616 is 80 + 2**16.
    "no port": "".join(
        f" example.org:{port} [2606:4700:4700::1111]:{port}"
        for port in [*each("0 65536 65616 4294967376 +80 -80 80a 0x50 8_0 8.0 ８０ ٨٠ 80:80 %38"), "9" * 500]
    ),
}  # fmt: skip
REFUSED = [
    *[f"http://{host}/" for hosts in REFUSED_HOSTS.values() for host in hosts.split()],
    *["", "http://exam ple.org/", "http://example.org:8 0/", "HTTPS://127.0.0.1:80/a.jpg", "http://127.0.0.1"],
    *["http://127.0.0.1?@example.org/", "http://127.0.0.1#@example.org/", "http://127.0.0.1/@example.org"],
    *each(r"""ftp://example.org/ file:///etc/passwd gopher://example.org/_ javascript:alert(1) ws://example.org/
    httpx://example.org/ http+unix://example.org/ httpſ://example.org/ url:http://example.org/ ://example.org/
    data:image/png;base64,AAAA http: http:/ http:// http:/// http://? http://# http://:80/ http:example.org
    http:/example.org http:///example.org http:////example.org http://http://example.org
    http:\\example.org\a http:/\example.org/ http://example.org\@127.0.0.1/ http://127.0.0.1\.example.org/
    http://example.org/a\b http://example.org/?a\b http://example.org/#\ \\example.org\a /\example.org/
    """),
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_a_url_that_two_readers_could_read_differently_or_that_leads_inside_is_refused(text: str) -> None:
    assert refused(text)
    if re.match("[A-Za-z]+:", text):
        assert refused(text, base=BASE)
    if text.startswith("http://"):  # a browser reads "///example.org" as a host, Python as a path
        assert refused(text.removeprefix("http:"), base=BASE)


@pytest.mark.parametrize(
    "text",
    ["//example.org/", "/a", "example.org", "example.org:80/a", "http//example.org", "http;//example.org",
     "http:\u2215/example.org", "http：//example.org", "<http://example.org>", '"http://example.org"'],
)  # fmt: skip
def test_a_url_without_scheme_is_refused(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    "form",
    ["{}http://example.org:80/a?b#c", "ht{}tp://example.org:80/a?b#c", "http://exam{}ple.org:80/a?b#c",
     "http://example.org:8{}0/a?b#c", "http://example.org:80/a{}?b#c", "http://example.org:80/a?b{}#c",
     "http://example.org:80/a?b#c{}d", "http://example.org:80/a?b#c{}", "/a{}b", "/{}/example.org"],
)  # fmt: skip
def test_a_control_character_anywhere_and_an_invisible_one_before_the_path_is_refused(form: str) -> None:
    controls = [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010)]
    controls += [*range(0x2028, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x2070)]
    controls += [0xFEFF, 0xFFF9, 0xE0001, 0xD800, 0xDBFF]
    around = (
        {ord(c) for c in map(chr, controls) if c.isspace()}
        if form.startswith("{}") or form.endswith("{}")
        else set()
    )
    assert not refused(form.format(""), base=BASE)
    shown = {c for c in controls if unicodedata.category(chr(c)) not in ("Cc", "Cs")}
    # Where it is no absolute URL any more, it is a relative one.
    in_path = "/a" in form.partition("{")[0] or form.startswith(("/", "{}", "ht{}"))
    assert {c for c in controls if not refused(form.format(chr(c)), base=BASE)} <= around | (
        shown if in_path else set()
    )
    if not form.startswith("/"):
        admitted = {c for c in controls if not refused(form.format(chr(c)))}
        before = {0xFEFF} if form.startswith("{}") else set()  # a byte order mark
        assert admitted == around | before | (shown if "/a" in form.partition("{")[0] else set())


@pytest.mark.parametrize("blank", [" ", "\t", "\r\n", " \n", "\u00a0", "\u2003", "\u202f", "\u3000"])
def test_blanks_are_dropped_around_a_url_escaped_within_and_refused_in_hosts(blank: str) -> None:
    plain = "http://example.org/a.jpg?b"
    for read in (POLICY.admit, lambda text: POLICY.follow(BASE, text)):
        assert str(read(blank + plain + blank)) == plain
    assert str(POLICY.follow(BASE, blank + "/c.jpg" + blank)) == "http://a/c.jpg"
    for host in (
        f"exam{blank}ple.org",
        f"{blank}example.org",
        f"example.org{blank}",
        f"example.org:{blank}80",
    ):
        assert refused(f"http://{host}/")
    if blank.isprintable() or blank in "\u00a0\u2003\u202f\u3000":
        escaped = "".join(f"%{byte:02X}" for byte in blank.encode())
        for read in (POLICY.admit, lambda text: POLICY.follow(BASE, text)):
            assert (
                str(read(f"http://example.org/a{blank}b?c{blank}d"))
                == f"http://example.org/a{escaped}b?c{escaped}d"
            )
    else:
        assert refused(f"http://example.org/a{blank}b")


def test_a_location_that_is_not_utf_8_is_escaped_byte_for_byte() -> None:
    location = "/caf\xe9 au lait".encode("latin-1").decode("utf-8", "surrogateescape")
    assert str(POLICY.follow(BASE, location)).endswith("/caf%E9%20au%20lait")


def legacy_spellings(address: IPv4Address) -> st.SearchStrategy[str]:
    """What inet_aton reads as `address`: one to four numbers, each decimal, octal or hexadecimal."""

    def spell(parts: int, bases: list[str], zeros: int, upper: bool) -> str:
        packed = address.packed
        numbers = [*packed[: parts - 1], int.from_bytes(packed[parts - 1 :], "big")]
        text = ".".join(base.format("0" * zeros, n) for base, n in zip(bases, numbers, strict=False))
        return text.upper() if upper else text

    bases = st.lists(st.sampled_from(["{1}", "0{0}{1:o}", "0x{0}{1:x}"]), min_size=4, max_size=4)
    return st.builds(spell, st.integers(1, 4), bases, st.integers(0, 3), st.booleans())


@given(st.data(), st.ip_addresses(v=4) | st.just(IPv4Address("127.0.0.1")) | st.just(IPv4Address("8.8.8.8")))
@settings(deadline=None, max_examples=300)
def test_of_all_spellings_of_any_ipv4_address_only_the_dotted_quad_is_ever_admitted(
    data: st.DataObject, address: IPv4Address
) -> None:
    spelling = data.draw(legacy_spellings(address))
    assert socket.inet_aton(spelling) == address.packed
    allowed = spelling == str(address) and is_public(address)
    assert refused(f"http://{spelling}/") is not allowed
    assert refused(f"http://{spelling}./")


@given(st.ip_addresses(v=6))
@settings(deadline=None, max_examples=200)
def test_an_ipv6_literal_is_admitted_exactly_when_it_is_public(address: IPv6Address) -> None:
    for spelling in (str(address), address.exploded.upper()):
        assert refused(f"http://[{spelling}]/") is not is_public(address)


def test_a_host_of_253_characters_and_a_label_of_63_are_admitted_and_one_more_is_refused() -> None:
    # An international label is measured in its ASCII form.
    international = {len(punycode("a" * n + "ü")): "a" * n + "ü" for n in range(60)}
    for label in ("a" * 63, international[63]):
        assert not refused(f"http://{label}.example/")
        assert refused(f"http://{'a' * 64}.example/")
        assert refused(f"http://example.{international[64]}/")
    for last, too_long in ((61, False), (62, True)):
        host = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * last])
        for dot in ("", "."):  # the root's, RFC 1034 section 3.1
            assert refused(f"http://{host}{dot}/") is too_long


def test_a_url_or_location_of_8192_characters_as_given_is_admitted_and_of_8193_refused() -> None:
    for head in ("http://example.org/", "/"):
        assert str(POLICY.follow(BASE, head.ljust(8192, "a"))).endswith(head.ljust(8192, "a"))
        for filler in "a#?":
            with pytest.raises(URLNotAllowed, match=r"8193 characters.* 8192"):
                POLICY.follow(BASE, head.ljust(8193, filler))
    assert len(str(POLICY.admit("http://example.org/".ljust(8192, "é")))) == 19 + 6 * 8173
    assert not refused(" http://example.org/".ljust(8193, "a") + "\n")  # without the blanks around it
    assert refused("http://example.org/".ljust(8193, "a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://example.org/", "'ftp'"), ("http://user@example.org/", "user name"),
        ("http://127.0.0.1/", r"127\.0\.0\.1"), ("http://[::1]/", "::1"), ("http://2130706433/", "number"),
        ("http://example.org:22/", "port is 22; allowed are 80, 443"),
    ],
)  # fmt: skip
def test_the_refusal_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(URLNotAllowed, match=said):
        POLICY.admit(text)


@pytest.mark.parametrize("form", ["{}://x", "http://a:{}80", "http://{}", "http://a@{}", "http://[{}]"])
def test_errors_do_not_grow_with_what_they_are_about(form: str) -> None:
    for filler in "a0":
        with pytest.raises(URLNotAllowed) as caught:
            POLICY.admit(form.format(2000 * filler))
        assert len(str(caught.value)) < 100


# The operator's lists


def test_only_ports_on_the_list_are_admitted_the_schemes_own_too() -> None:
    only_8443 = URLPolicy(allowed_ports=frozenset({8443}))
    assert not refused("https://example.org:8443/", only_8443)
    for text in ("http://example.org/", "https://example.org/", "https://example.org:8442/"):
        assert refused(text, only_8443)
    for port in (1, 79, 81, 442, 444, 65535):
        assert refused(f"http://example.org:{port}/")


def test_an_address_of_an_allowed_network_is_admitted_and_its_neighbour_is_not() -> None:
    policy = URLPolicy(addresses=AddressPolicy((ip_network("10.1.0.0/16"), ip_network("fd00::/64"))))
    assert not refused("http://10.1.255.255/", policy)
    assert str(policy.admit("http://[FD00::0007]/")) == "http://[fd00::7]/"
    for host in ("10.2.0.0", "[fd00:0:0:1::]", "[::ffff:10.1.0.1]"):
        assert refused(f"http://{host}/", policy)
    every_ipv6 = URLPolicy(addresses=AddressPolicy((ip_network("::/0"),)))
    assert not refused("http://[fe80::1]/", every_ipv6)
    assert refused("http://[fe80::1%25eth0]/", every_ipv6)
    assert refused("http://[fe80::1%eth0]/", every_ipv6)


@pytest.mark.parametrize(
    ("globs", "on_the_list", "not_on_it"),
    [
        (
            "example.org img?.example.org xn--bcher-kva.example",
            "example.org EXAMPLE.org example.org. ｅxample.org img1.example.org bücher.example",
            "www.example.org notexample.org example.org.evil.example exampleXorg img12.example.org bucher.example",
        ),
        (
            "*.example.org",
            "www.example.org a.b.example.org a.example.org.",
            """example.org notexample.org a.example.org.evil.example evil.example/.example.org
            evil.example?.example.org evil.example#.example.org a.example.org@evil.example
            evil.example%2f.example.org""",
        ),
        (
            "93.184.216.34 2606:4700:4700::1111 2606:4701:*",
            "93.184.216.34 [2606:4700:4700:0:0:0:0:1111] [2606:4701::1]",
            "93.184.216.35 [2606:4700:4700::1112] [2606:4702::1]",
        ),
        ("* 127.0.0.1 ::1 2130706433", "example.org", "127.0.0.1 [::1] 2130706433 127.0.0.1."),
    ],
)  # fmt: skip
def test_a_host_is_fetched_from_when_a_glob_names_it(globs: str, on_the_list: str, not_on_it: str) -> None:
    policy = URLPolicy(allowed_hosts=tuple(globs.split()))
    for host in on_the_list.split():
        assert not refused(f"http://{host}", policy)
        assert not refused(f"http://{host}:80/a", policy)
    for host in not_on_it.split():
        assert refused(f"http://{host}", policy)


# Redirects


@pytest.mark.parametrize(
    ("location", "target"),
    [
        # RFC 3986 sections 5.4.1 and 5.4.2; a fragment is dropped, and an empty query too, as admit does.
        ("g", "a/b/c/g"), ("./g", "a/b/c/g"), ("g/", "a/b/c/g/"), ("/g", "a/g"), ("//g", "g/"),
        ("?y", "a/b/c/d;p?y"), ("?", "a/b/c/d;p"), ("?#s", "a/b/c/d;p"), ("g?y", "a/b/c/g?y"),
        ("#s", "a/b/c/d;p?q"), ("g#s", "a/b/c/g"), ("g?y#s", "a/b/c/g?y"), (";x", "a/b/c/;x"),
        ("g;x", "a/b/c/g;x"), ("g;x?y#s", "a/b/c/g;x?y"), ("", "a/b/c/d;p?q"), (".", "a/b/c/"),
        ("./", "a/b/c/"), ("..", "a/b/"), ("../", "a/b/"), ("../g", "a/b/g"), ("../..", "a/"),
        ("../../", "a/"), ("../../g", "a/g"), ("../../../g", "a/g"), ("../../../../g", "a/g"),
        ("/./g", "a/g"), ("/../g", "a/g"), ("g.", "a/b/c/g."), (".g", "a/b/c/.g"), ("g..", "a/b/c/g.."),
        ("..g", "a/b/c/..g"), ("./../g", "a/b/g"), ("./g/.", "a/b/c/g/"), ("g/./h", "a/b/c/g/h"),
        ("g/../h", "a/b/c/h"), ("g;x=1/./y", "a/b/c/g;x=1/y"), ("g;x=1/../y", "a/b/c/y"),
        ("g?y/./x", "a/b/c/g?y/./x"), ("g?y/../x", "a/b/c/g?y/../x"), ("g#s/../x", "a/b/c/g"),
        # Ours: what admit does, and a colon behind what is no scheme (section 3.1).
        ("//EXAMPLE.org:443/x", "example.org:443/x"), ("/é|%2520", "a/%C3%A9%7C%2520"), (".a:b", "a/b/c/.a:b"),
        ("/a,b//%ff/c", "a/a,b//%ff/c"),
        ("1http://example.org:x/", "a/b/c/1http://example.org:x/"), ("é:b", "a/b/c/%C3%A9:b"), (":80", "a/b/c/:80"),
    ],
)  # fmt: skip
def test_a_relative_redirect_leads_where_rfc_3986_says(location: str, target: str) -> None:
    url = POLICY.follow(BASE, location)
    assert str(url) == f"http://{target}"
    assert_everybody_reads(url)


SEGMENTS = st.lists(
    st.sampled_from(["a", "b:c", "%2F", "a%3Fb", "%23", "a%20b", "%25", "%ff", "%0d%0aX:1"]),
    min_size=1,
    max_size=4,
)
DOTTED = st.lists(st.sampled_from(["d", "e%2Ff", "%3F", ".", ".."]), max_size=6)


@given(SEGMENTS, st.sampled_from(["", "/"]), DOTTED, st.sampled_from(["", "?g", "?g=%2F/../h"]))
@settings(deadline=None, max_examples=300)
def test_a_relative_redirect_leads_where_pythons_urljoin_says_escapes_kept(
    base: list[str], root: str, path: list[str], query: str
) -> None:
    url = f"http://example.org/{'/'.join(base)}?i"
    location = root + "/".join(path) + query
    assert str(POLICY.follow(POLICY.admit(url), location)) == urljoin(url, location)


@pytest.mark.parametrize("location", each("g:h http:g gopher:x /// ///example.org/ //]"))
def test_a_location_that_is_neither_relative_nor_admitted_is_refused(location: str) -> None:
    assert refused(location, base=BASE)


@pytest.mark.parametrize(
    ("location", "end"), [("b.jpg", "/b.jpg"), ("?x=1", "/a?x=1"), ("#f", "/a"), ("", "/a"), ("/b", "/b")]
)
def test_a_base_that_escapes_made_long_can_be_left(location: str, end: str) -> None:
    folder = "" if location == "/b" else "/" + "%E7%8C%AB" * 300
    base = POLICY.admit("http://example.org/" + "猫" * 300 + "/a")
    assert str(POLICY.follow(base, location)) == f"http://example.org{folder}{end}"


def test_a_redirect_is_held_to_the_same_hosts_ports_and_networks() -> None:
    policy = URLPolicy(
        allowed_hosts=("a.example", "10.0.0.7"),
        allowed_ports=frozenset({80, 8080}),
        addresses=AddressPolicy((ip_network("10.0.0.0/24"),)),
    )
    base = policy.admit("http://a.example/x")
    assert str(policy.follow(base, "//10.0.0.7:8080/")) == "http://10.0.0.7:8080/"
    for location in ("//b.example/", "//10.0.0.8/", "//a.example:443/", "https://a.example/"):
        assert refused(location, policy, base=base)


# Whatever the text

URL_ISH = st.text(
    "htps:/\\@#?[]%.&=;0127f8xaé猫１。\t\r\n \0-_+|*,'\"~\u2100\uff0f\u202e\u00ad①", max_size=60
)
LOOKS_LIKE_A_HOST = st.one_of(
    st.text("0123456789abcdefxo.", max_size=20),
    st.text("0１2٣①.。．｡xXｘ", max_size=12),
    st.text("abc-_.xnü", max_size=20),
    st.text("0123456789abcdef:.[]%", max_size=30),
    st.text(max_size=20),
    st.text("xn-089azé.", max_size=20).map("xn--".__add__),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    st.sampled_from(["example.org", "EXAMPLE.org.", "bücher.example", "[::1]", "localhost", "[2606:4700::1]"]),
)  # fmt: skip
BEHIND_A_SCHEME = st.tuples(
    st.sampled_from(["", "", "", "", "", "user@", "a:b@", "@", "example.org@"]),
    LOOKS_LIKE_A_HOST,
    st.sampled_from(["", "", "", ":80", ":443", ":", ":0", ":080", ":99999", ":-1", ":８０"]),
    st.sampled_from(["", "/", "?", "#", "/a/../b", "/é?ü#x", "//", "/@", "?@x", "#@x", "\\"]),
    URL_ISH | st.just(""),
).map("".join)
COMPOSED = st.tuples(
    st.sampled_from(["http", "https", "HTTP", "Https", "ftp", "", "http ", "ｈttp"]),
    st.sampled_from(["://", "://", "://", "://", ":/", ":", ":///", ":\\\\", "//"]),
    BEHIND_A_SCHEME,
).map("".join)
ANY_TEXT = st.text() | URL_ISH | (URL_ISH | LOOKS_LIKE_A_HOST).map("http://".__add__) | COMPOSED
IPV6_BASE = URL("https://[2606:4700::1]:80/a/b?c", encoded=True)


@given(
    st.sampled_from([None, BASE, IPV6_BASE]),
    ANY_TEXT | URL_ISH.map("//".__add__) | LOOKS_LIKE_A_HOST.map("//".__add__),
)
@example(None, "http://１")
@example(None, "http://\u2488")
@example(None, "http://xn--a")  # decodes to nothing
@example(None, "http://xn--999999999.example")
@example(None, "http://é.xn--\uff11")
@settings(deadline=None, max_examples=600)
def test_any_text_is_refused_or_becomes_a_url_that_everybody_reads_alike(base: URL | None, text: str) -> None:
    refused(text, base=base)  # asserts it of what is admitted


@given(st.sampled_from(["http://", "https://", "HTTP://", "Https:///"]), BEHIND_A_SCHEME)
@settings(deadline=None, max_examples=200)
def test_an_absolute_location_leads_exactly_where_admit_would(scheme: str, rest: str) -> None:
    outcomes = []
    for read in (POLICY.admit, lambda text: POLICY.follow(BASE, text)):
        try:
            outcomes.append(str(read(scheme + rest)))
        except URLNotAllowed:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]
