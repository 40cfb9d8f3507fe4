"""Which addresses may be dialled: every block's edges, every way to carry an IPv4 address in an IPv6 one.

This is the one table of addresses: the tests of URLs and of downloads take a few representatives.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.fetch.addresses import Address, AddressPolicy, Network, is_public

# IANA's IPv4 special-purpose registry, multicast, class E and Azure's host address.
DENIED_IPV4 = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
    198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
""".split()  # noqa: SIM905 - a table is read more easily than 19 literals
# What is denied inside 2000::/3, the only block handed out.
DENIED_INSIDE_GLOBAL_UNICAST = ["2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"]
# What is denied because it is outside 2000::/3.
DENIED_OUTSIDE_GLOBAL_UNICAST = [
    "::/96",  # IPv4-compatible, with :: and ::1
    "::ffff:0:0/96",  # IPv4-mapped
    "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765
    "64:ff9b::/96",  # NAT64, RFC 6052
    "64:ff9b:1::/48",  # NAT64 of the local network, RFC 8215
    "100::/64",  # discard, RFC 6666
    "5f00::/16",  # segment routing, RFC 9602
    "fc00::/7",  # unique local
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local, deprecated
    "ff00::/8",  # multicast
    "::/3",
    "4000::/2",
    "8000::/1",
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1"),
    *("2001:200::1", "2001:4860:4860::8888", "2606:4700:4700::1111", "2a00:1450:4001:800::200e"),
]
# To put an ISATAP interface id behind: three of public hosts, and a private one.
PREFIXES = ["2606:4700:4700::", "2001:200::", "3ffe::", "fd00:1::"]

EVERYTHING_DENIED = [
    ip_network(block) for block in DENIED_IPV4 + DENIED_INSIDE_GLOBAL_UNICAST + DENIED_OUTSIDE_GLOBAL_UNICAST
]


def neighbours(network: Network) -> list[Address]:
    """The addresses just below and just above `network`, where there are any."""
    family = type(network.network_address)
    below, above = int(network.network_address) - 1, int(network.broadcast_address) + 1
    return [family(n) for n in (below, above) if 0 <= n < 2**network.max_prefixlen]


def is_ipv4(network: Network) -> bool:
    return network.version == 4


def isatap(prefix: str, universal: int, embedded: IPv4Address) -> IPv6Address:
    # RFC 5214 section 6.1: 64 bits of prefix, 0000:5efe or 0200:5efe, 32 bits of IPv4 address.
    return IPv6Address(int(IPv6Address(prefix)) | universal << 56 | 0x5EFE << 32 | int(embedded))


def carriers(a: IPv4Address) -> dict[str, tuple[str, IPv6Address]]:
    """The networks whose addresses carry an IPv4 address, and in each the address that carries `a`."""
    n, elsewhere = int(a), int(IPv4Address("8.8.8.8"))
    return {
        "compatible, RFC 4291 2.5.5.1": ("::/96", IPv6Address(n)),
        "mapped, RFC 4291 2.5.5.2": ("::ffff:0:0/96", IPv6Address(0xFFFF << 32 | n)),
        "translated, RFC 2765": ("::ffff:0:0:0/96", IPv6Address(0xFFFF << 48 | n)),
        "NAT64, RFC 6052": ("64:ff9b::/96", IPv6Address(0x64FF9B << 96 | n)),
        "NAT64, in a larger network": ("::/0", IPv6Address(0x64FF9B << 96 | n)),
        "local NAT64, RFC 8215": ("64:ff9b:1::/96", IPv6Address(0x64FF9B0001 << 80 | n)),
        "6to4, RFC 3056": ("2002::/16", IPv6Address(0x2002 << 112 | n << 80)),
        "6to4 with a host": ("2002::/16", IPv6Address(0x2002 << 112 | n << 80 | 1)),
        "Teredo client, RFC 4380": (
            "2001::/32",
            IPv6Address(0x20010000 << 96 | elsewhere << 64 | (n ^ 0xFFFFFFFF)),
        ),
        "Teredo server, RFC 4380": (
            "2001::/32",
            IPv6Address(0x20010000 << 96 | n << 64 | (elsewhere ^ 0xFFFFFFFF)),
        ),
        **{f"ISATAP {u} {p}": (f"{p}/64", isatap(p, u, a)) for p in PREFIXES for u in (0, 2)},
    }


def test_a_denied_block_is_denied_from_its_first_to_its_last_address_and_its_neighbours_are_public() -> None:
    public = 0
    for block in EVERYTHING_DENIED:
        edges = (block.network_address, block[block.num_addresses // 2], block.broadcast_address)
        assert not any(map(is_public, edges)), block
        for neighbour in neighbours(block):
            elsewhere = any(neighbour in other for other in EVERYTHING_DENIED)
            assert is_public(neighbour) is not elsewhere, neighbour
            public += not elsewhere
    # 19 IPv4 blocks, less the ends of the space and 2 between 224/4 and 240/4; 5 inside 2000::/3, and its own.
    assert public == (2 * 19 - 2 - 2) + 2 * 5 + 2


def test_an_ordinary_public_address_is_allowed_but_none_with_a_zone() -> None:
    assert all(AddressPolicy().allows(ip_address(address)) for address in PUBLIC)
    for address in ("fe80::1%eth0", "2606:4700:4700::1111%eth0", "2606:4700:4700::1111%1"):
        assert not AddressPolicy().allows(ip_address(address))
        assert not AddressPolicy((ip_network("::/0"),)).allows(ip_address(address))


@pytest.mark.parametrize("interface", ["0:5efd:a00:1", "0:5eff:a00:1", "100:5efe:a00:1", "300:5efe:a00:1"])
def test_an_interface_id_one_bit_from_isatap_is_allowed(interface: str) -> None:
    assert is_public(IPv6Address(f"2606:4700:4700:0:{interface}"))


@pytest.mark.parametrize(
    "block", ["10.1.2.0/24", "127.0.0.1/32", "169.254.169.254/32", "fd00:1::/64", "::1/128"]
)
def test_an_allowed_network_is_opened_to_its_edges_and_no_further(block: str) -> None:
    network = ip_network(block)
    policy = AddressPolicy((ip_network("192.168.7.0/24"), network, ip_network("fd77::/64")))
    assert policy.allows(network.network_address)
    assert policy.allows(network.broadcast_address)
    assert not any(policy.allows(neighbour) for neighbour in neighbours(network))


def test_an_allowed_network_opens_no_address_of_the_other_family() -> None:
    policy, private = AddressPolicy((IPv4Network("0.0.0.0/0"),)), IPv4Address("10.1.2.3")
    assert policy.allows(private)
    assert [form for form, (_, address) in carriers(private).items() if policy.allows(address)] == []
    assert not AddressPolicy((IPv6Network("::/0"),)).allows(private)


def test_the_operator_allows_addresses_of_named_networks_only_and_not_public_ones() -> None:
    policy = AddressPolicy((IPv4Network("10.0.0.0/8"),))
    assert policy.operator_allows(IPv4Address("10.0.0.1"))
    assert not policy.operator_allows(IPv4Address("8.8.8.8"))


@given(st.ip_addresses(v=4))
@settings(deadline=None, max_examples=500)
def test_no_ipv6_form_of_any_ipv4_address_is_public(a: IPv4Address) -> None:
    assert [form for form, (_, address) in carriers(a).items() if is_public(address)] == []


@given(st.ip_addresses(v=4) | st.sampled_from(EVERYTHING_DENIED).filter(is_ipv4).map(lambda n: n[-1]))
@settings(deadline=None, max_examples=500)
def test_in_an_allowed_network_an_address_is_allowed_exactly_when_what_it_carries_is(a: IPv4Address) -> None:
    for form, (network, address) in carriers(a).items():
        if address in (IPv6Address("::"), IPv6Address("::1")):
            continue  # they carry nothing
        policy = AddressPolicy((ip_network(network), IPv4Network("10.0.0.0/8")))
        assert policy.allows(address) is (is_public(a) or a in IPv4Network("10.0.0.0/8")), form


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        # RFC 6052 section 2.4, table 2, in RFC 8215's prefix: 192.0.2.33 behind prefixes of each length.
        ("64:ff9b:1::/48", "64:ff9b:1:c000:2:2100::"), ("64:ff9b:1:300::/56", "64:ff9b:1:3c0:0:221::"),
        ("64:ff9b:1:344::/64", "64:ff9b:1:344:c0:2:2100::"),
        ("64:ff9b:1:344::/96", "64:ff9b:1:344::192.0.2.33"),
        ("64:ff9b:1:344::192.0.2.32/127", "64:ff9b:1:344::192.0.2.33"),
    ],
)  # fmt: skip
def test_a_local_nat64_prefix_is_unwrapped_by_its_length(prefix: str, address: str) -> None:
    def allows(ipv4: str) -> bool:
        return AddressPolicy((ip_network(prefix), ip_network(ipv4))).allows(ip_address(address))

    assert not AddressPolicy((ip_network(prefix),)).allows(ip_address(address))
    assert allows("192.0.2.33/32")
    assert not allows("192.0.2.32/32")


@pytest.mark.parametrize(
    "network", ["::/0", "64:ff9b::/32", "64:ff9b:1::/49", "64:ff9b:1::/65", "64:ff9b:1::/95"]
)
def test_where_the_length_of_a_local_nat64_prefix_is_not_told_nothing_is_allowed(network: str) -> None:
    policy = AddressPolicy((ip_network(network), IPv4Network("0.0.0.0/0")))
    assert not policy.allows(ip_address("64:ff9b:1::8.8.8.8"))


def test_what_carries_nothing_is_allowed_with_its_network() -> None:
    policy = AddressPolicy((ip_network("::/127"), ip_network("fd00::/8")))
    assert all(policy.allows(ip_address(a)) for a in ("::", "::1", "fd00::1", "fd00::7f00:1"))


@given(st.ip_addresses() | st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(IPv6Address))
@settings(deadline=None, max_examples=1000)
def test_an_address_is_public_exactly_when_no_denied_block_and_no_isatap_id_holds_it(
    address: Address,
) -> None:
    held = any(address in network for network in EVERYTHING_DENIED)
    tunnelled = address.version == 6 and address.packed[8:12] in (b"\0\0\x5e\xfe", b"\x02\0\x5e\xfe")
    assert is_public(address) is not (held or tunnelled)
    special = address.is_private or address.is_multicast or address.is_reserved or address.is_link_local
    assert not (special and is_public(address))  # the standard library's opinion
