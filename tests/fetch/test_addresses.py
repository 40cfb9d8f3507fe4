"""Which addresses may be dialled: every block's edges, every way to hide an IPv4 address in an IPv6 one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.fetch.addresses import Address, AddressPolicy, Network, is_public

# IANA's IPv4 special-purpose registry, multicast, class E and Azure's host address.
DENIED_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
# What is denied inside 2000::/3, the only block handed out.
DENIED_INSIDE_GLOBAL_UNICAST = [
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
]
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
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
]
# Prefixes that a public host could have, to put an ISATAP interface id behind.
PUBLIC_PREFIXES = ["2606:4700:4700::", "2a00:1450:4001:800::", "2001:200::", "3ffe::"]

EVERYTHING_DENIED = [
    ip_network(block) for block in DENIED_IPV4 + DENIED_INSIDE_GLOBAL_UNICAST + DENIED_OUTSIDE_GLOBAL_UNICAST
]


def neighbours(network: Network) -> list[Address]:
    """The addresses just below and just above `network`, where there are any."""
    family = type(network.network_address)
    below, above = int(network.network_address) - 1, int(network.broadcast_address) + 1
    return [family(n) for n in (below, above) if 0 <= n < 2**network.max_prefixlen]


def isatap(prefix: str, universal: int, embedded: IPv4Address) -> IPv6Address:
    # RFC 5214 section 6.1: 64 bits of prefix, 0000:5efe or 0200:5efe, 32 bits of IPv4 address.
    return IPv6Address(int(IPv6Address(prefix)) | universal << 56 | 0x5EFE << 32 | int(embedded))


def forms_that_embed(a: IPv4Address) -> dict[str, IPv6Address]:
    n = int(a)
    return {
        "compatible, RFC 4291 2.5.5.1": IPv6Address(n),
        "mapped, RFC 4291 2.5.5.2": IPv6Address(0xFFFF << 32 | n),
        "translated, RFC 2765": IPv6Address(0xFFFF << 48 | n),
        "NAT64, RFC 6052": IPv6Address(0x64FF9B << 96 | n),
        "local NAT64, RFC 8215": IPv6Address(0x64FF9B0001 << 80 | n),
        "6to4, RFC 3056": IPv6Address(0x2002 << 112 | n << 80),
        "6to4 with a host": IPv6Address(0x2002 << 112 | n << 80 | 1),
        "Teredo client, RFC 4380": IPv6Address(0x20010000 << 96 | (n ^ 0xFFFFFFFF)),
        "Teredo server, RFC 4380": IPv6Address(0x20010000 << 96 | n << 64),
        **{f"ISATAP {u} {p}": isatap(p, u, a) for p in PUBLIC_PREFIXES for u in (0, 2)},
    }


@pytest.mark.parametrize("network", EVERYTHING_DENIED, ids=str)
def test_a_denied_block_is_denied_from_its_first_to_its_last_address(network: Network) -> None:
    middle = network[network.num_addresses // 2]
    assert not is_public(network.network_address)
    assert not is_public(middle)
    assert not is_public(network.broadcast_address)


@pytest.mark.parametrize("block", DENIED_IPV4)
def test_the_neighbours_of_a_denied_ipv4_block_are_public_unless_another_block_holds_them(block: str) -> None:
    for neighbour in neighbours(ip_network(block)):
        elsewhere = any(neighbour in IPv4Network(other) for other in DENIED_IPV4)
        assert is_public(neighbour) is not elsewhere, neighbour


def test_all_but_two_edges_of_the_ipv4_blocks_lie_next_to_a_public_address() -> None:
    # So that the test above can't pass by finding every neighbour in another block.
    edges = [n for block in DENIED_IPV4 for n in neighbours(ip_network(block))]
    alone = [n for n in edges if not any(n in IPv4Network(block) for block in DENIED_IPV4)]
    # 19 blocks with 38 edges, of which 2 are the ends of the space and 2 lie between 224/4 and 240/4.
    assert len(edges) == 36
    assert len(alone) == 34


@pytest.mark.parametrize("block", DENIED_INSIDE_GLOBAL_UNICAST)
def test_the_neighbours_of_a_denied_block_inside_global_unicast_are_public(block: str) -> None:
    assert [is_public(neighbour) for neighbour in neighbours(ip_network(block))] == [True, True]


def test_global_unicast_begins_at_2000_and_ends_before_4000() -> None:
    network = IPv6Network("2000::/3")
    assert is_public(network.network_address)
    assert is_public(network.broadcast_address)
    assert [is_public(neighbour) for neighbour in neighbours(network)] == [False, False]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_ordinary_public_address_is_allowed(address: str) -> None:
    assert AddressPolicy().allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001::1",  # Teredo
        "2001:2::1",  # benchmarking
        "2001:10::1",  # ORCHID
        "2001:20::1",  # ORCHIDv2
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db8::1",
        "3fff::1",
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fc00::1",
        "fd00:ec2::254",  # the metadata service of one cloud
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",  # global multicast
        "2606:4700:4700::5efe:a00:1",
        "2606:4700:4700:0:200:5efe:a00:1",
    ],
)
def test_an_address_of_a_special_ipv6_class_is_denied(address: str) -> None:
    assert not AddressPolicy().allows(ip_address(address))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700:4700::1111%eth0", "2606:4700:4700::1111%1"])
def test_an_address_with_a_zone_is_denied_even_where_its_network_is_allowed(address: str) -> None:
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
    policy = AddressPolicy((network,))
    assert policy.allows(network.network_address)
    assert policy.allows(network.broadcast_address)
    assert not any(policy.allows(neighbour) for neighbour in neighbours(network))


def test_several_allowed_networks_of_both_families_are_each_opened() -> None:
    policy = AddressPolicy((ip_network("10.0.0.0/24"), ip_network("fd00::/64"), ip_network("192.168.7.0/24")))
    assert all(policy.allows(ip_address(a)) for a in ("10.0.0.7", "fd00::7", "192.168.7.7", "8.8.8.8"))
    assert not any(policy.allows(ip_address(a)) for a in ("10.0.1.7", "fd00:0:0:1::7", "192.168.8.7"))


@pytest.mark.parametrize("a", ["10.1.2.3", "127.0.0.1"])
def test_an_allowed_ipv4_network_opens_no_ipv6_form_of_its_addresses(a: str) -> None:
    policy = AddressPolicy((IPv4Network("0.0.0.0/0"),))
    assert policy.allows(IPv4Address(a))
    assert [
        form for form, address in forms_that_embed(IPv4Address(a)).items() if policy.allows(address)
    ] == []


def test_an_ipv6_network_opens_no_ipv4_address() -> None:
    assert not AddressPolicy((IPv6Network("::/0"),)).allows(IPv4Address("10.0.0.1"))


def test_an_operator_vouches_for_named_networks_only_and_not_for_public_addresses() -> None:
    policy = AddressPolicy((IPv4Network("10.0.0.0/8"),))
    assert policy.vouched_for(IPv4Address("10.0.0.1"))
    assert not policy.vouched_for(IPv4Address("8.8.8.8"))
    assert not AddressPolicy().vouched_for(IPv4Address("10.0.0.1"))


@given(st.ip_addresses(v=4))
@settings(deadline=None, max_examples=500)
def test_no_ipv6_form_of_any_ipv4_address_is_public(a: IPv4Address) -> None:
    assert [form for form, address in forms_that_embed(a).items() if is_public(address)] == []


@given(st.ip_addresses() | st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(IPv6Address))
@settings(deadline=None, max_examples=500)
def test_what_the_standard_library_calls_special_is_denied(address: Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or getattr(address, "is_site_local", False)
    )
    assert not (special and is_public(address))


@given(st.ip_addresses())
@settings(deadline=None, max_examples=500)
def test_an_address_is_public_exactly_when_no_denied_block_and_no_isatap_id_holds_it(
    address: Address,
) -> None:
    held = any(address in network for network in EVERYTHING_DENIED)
    tunnelled = address.version == 6 and address.packed[8:12] in (b"\0\0\x5e\xfe", b"\x02\0\x5e\xfe")
    assert is_public(address) is not (held or tunnelled)
