"""May this address be dialled? Pure: no name is looked up, no packet is sent.

Only addresses that are public for everybody may be dialled, plus the networks that the operator vouches for.
`ipaddress.is_global` is no substitute: on Python 3.11 it is true for NAT64, 6to4, IPv4-compatible and
multicast addresses, each a way to reach a private IPv4 address or many machines at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# IANA's IPv4 special-purpose registry, multicast, class E, and the metadata address of one cloud.
DENIED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host: metadata and DNS
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.31.196.0/24",  # AS112-v4
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relay anycast, deprecated
        "192.168.0.0/16",  # private, RFC 1918
        "192.175.48.0/24",  # AS112 direct delegation
        "198.18.0.0/15",  # benchmarking, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

# The only IPv6 block handed out so far. It leaves out loopback, IPv4-mapped and -compatible forms, NAT64,
# unique local, link-local and multicast addresses.
GLOBAL_UNICAST = IPv6Network("2000::/3")
DENIED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4: carries an IPv4 address
        "2620:4f:8000::/48",  # AS112 direct delegation
        "3fff::/20",  # documentation, RFC 9637
    )
)


@dataclass(frozen=True)
class AddressPolicy:
    """Which addresses may be dialled.

    AddressPolicy().allows(ip_address("8.8.8.8"))                                → True
    AddressPolicy().allows(ip_address("10.0.0.7"))                               → False
    AddressPolicy((ip_network("10.0.0.0/24"),)).allows(ip_address("10.0.0.7"))   → True
    """

    allowed_networks: tuple[Network, ...] = ()
    """Networks that may be dialled although they would be denied."""

    def allows(self, address: Address) -> bool:
        return self.vouched_for(address) or is_public(address)

    def vouched_for(self, address: Address) -> bool:
        """Whether the operator named a network that holds `address`."""
        if getattr(address, "scope_id", None):
            return False
        return any(address in network for network in self.allowed_networks)


def is_public(address: Address) -> bool:
    """Whether `address` is an ordinary public unicast address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in DENIED_IPV4)
    if address.scope_id is not None or _is_isatap(address):
        return False
    return address in GLOBAL_UNICAST and not any(address in net for net in DENIED_IPV6)


def _is_isatap(address: IPv6Address) -> bool:
    # RFC 5214 section 6.1: the interface id is 0000:5efe or 0200:5efe, then an IPv4 address that a tunnel
    # would deliver to.
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE
