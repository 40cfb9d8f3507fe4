"""May this address be dialled? Pure: no name is looked up, no packet is sent.

Public unicast addresses may be dialled, and those of the networks that the operator allows.
`ipaddress.is_global` is no substitute: on Python 3.11 it is true for NAT64, 6to4, IPv4-compatible and
multicast addresses. Each reaches a private IPv4 address, or many machines at once.
"""

from __future__ import annotations

import errno
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

# The only IPv6 block that IANA has allocated for unicast. Loopback, IPv4-mapped and -compatible, NAT64,
# unique local, link-local and multicast addresses are outside it.
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


# Where an IPv6 address carries an IPv4 address that a translator or a tunnel delivers to: the block, and how
# many bits to the right of the IPv4 address there are.
_CARRIERS = (
    (IPv6Network("::/96"), 0),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped, section 2.5.5.2
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052: its well-known prefix has this length only
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
    (IPv6Network("2001::/32"), 64),  # Teredo's server, RFC 4380
)
_TEREDO = IPv6Network("2001::/32")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_NO_CARRIERS = (IPv6Address("::"), IPv6Address("::1"))


class AddressRefused(PermissionError):
    """An address that may not be dialled. An OSError, as all that goes wrong where one is dialled."""

    def __init__(self, address: Address) -> None:
        self.text = f"{address} is not public, not allowed, or this machine's own"
        super().__init__(errno.EACCES, self.text)


@dataclass(frozen=True)
class AddressPolicy:
    """Which addresses may be dialled.

    An IPv6 address that carries an IPv4 address is allowed only where both are: with 64:ff9b::/96 allowed,
    64:ff9b::8.8.8.8 is, and 64:ff9b::169.254.169.254 is not.

    This holds for NAT64's well-known prefix, IPv4-mapped, -compatible and -translated addresses, 6to4, Teredo
    (server and client) and ISATAP. In 64:ff9b:1::/48 (RFC 8215) the allowed network must be the translator's
    prefix, because its length says where the IPv4 address stands (RFC 6052 section 2.2): /48, /56, /64, or
    /96 and longer. With any other length nothing there is allowed. A network's own NAT64 prefix (RFC 6052:
    /32 to /96 of its own addresses) looks like any other network: what it leads to is the translator's to
    restrict.
    """

    allowed_networks: tuple[Network, ...] = ()
    """Networks that may be dialled although they would be denied."""

    def allows(self, address: Address) -> bool:
        return self.operator_allows(address) or is_public(address)

    def operator_allows(self, address: Address) -> bool:
        """Whether the operator allowed a network that holds `address`, and what the address carries."""
        if getattr(address, "scope_id", None):
            return False
        return any(self._network_allows(network, address) for network in self.allowed_networks)

    def _network_allows(self, network: Network, address: Address) -> bool:
        if address not in network:
            return False
        if isinstance(address, IPv4Address):
            return True
        if address in _LOCAL_NAT64:
            carried = _carried_by_local_nat64(address, network.prefixlen)
            return carried is not None and self.allows(carried)
        return all(map(self.allows, _carried(address)))


def is_public(address: Address) -> bool:
    """Whether `address` is an ordinary public unicast address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in DENIED_IPV4)
    if address.scope_id is not None or _is_isatap(address):
        return False
    return address in GLOBAL_UNICAST and not any(address in net for net in DENIED_IPV6)


def _carried(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that `address` carries, outside 64:ff9b:1::/48."""
    if address in _NO_CARRIERS:
        return []
    carried = [_ipv4(int(address) >> shift) for network, shift in _CARRIERS if address in network]
    if address in _TEREDO:
        carried.append(_ipv4(~int(address)))  # the client's, with all its bits inverted
    if _is_isatap(address):
        carried.append(_ipv4(int(address)))
    return carried


def _carried_by_local_nat64(address: IPv6Address, prefix_length: int) -> IPv4Address | None:
    """None where `prefix_length` is none of a translator's."""
    bits = int(address)
    if prefix_length >= 96:
        return _ipv4(bits)
    if prefix_length not in (48, 56, 64):
        return None
    without_u = (bits >> 64 << 56) | (bits & (1 << 56) - 1)  # RFC 6052: bits 64 to 71 are left out
    return _ipv4(without_u >> 120 - prefix_length - 32)


def _ipv4(bits: int) -> IPv4Address:
    return IPv4Address(bits & 0xFFFF_FFFF)


def _is_isatap(address: IPv6Address) -> bool:
    # RFC 5214 section 6.1: the interface id is 0000:5efe or 0200:5efe, then an IPv4 address that a tunnel
    # delivers to.
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE
