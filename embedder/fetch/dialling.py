"""The guard where addresses are dialled.

`dialable` judges all addresses of a name, and `Dialler` the one address of each socket, whether it was written in
the URL or came from a name or a redirect. Between the two nothing is looked up again, so that a name can't change
its address after it was judged.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, ip_address

from aiohappyeyeballs import AddrInfoType, start_connection

from embedder.errors import StartError
from embedder.fetch.addresses import Address, AddressPolicy, AddressRefused
from embedder.fetch.failures import NO_ROOM, not_connected
from embedder.fetch.names import Names, Resolver
from embedder.fetch.urls import literal_address
from embedder.runtime.file_limits import is_reserved

# A name with hundreds of addresses would otherwise be dialled until the deadline.
MAX_ADDRESSES_PER_NAME = 8
# Judging one takes 15 µs of the event loop. Over TCP a name server can send four thousand.
MAX_ADDRESSES_PER_ANSWER = 256

# RFC 8305 section 5: between the beginnings of two attempts.
ATTEMPTS_DELAY_S = 0.25

# Documentation addresses (RFC 5737, 3849, 9637), which no machine has.
_NOBODYS_ADDRESSES = {
    "net.ipv4.ip_nonlocal_bind": (ip_address("192.0.2.1"), ip_address("203.0.113.1")),
    "net.ipv6.ip_nonlocal_bind": (ip_address("2001:db8::1"), ip_address("3fff::1")),
}

OpenSocket = Callable[[int, int, int], socket.socket]
"""`socket.socket`, or a stand-in: (family, type, protocol) → an unconnected socket."""


class Dialler:
    """Opens TCP connections to hosts.

    Without a policy every address may be dialled: for the operator's own proxy.
    """

    def __init__(self, resolver: Resolver, policy: AddressPolicy | None, open_socket: OpenSocket) -> None:
        self._names = Names(resolver, partial(dialable, policy=policy))
        self._policy = policy
        self._open_socket = open_socket

    async def close(self) -> None:
        await self._names.close()

    async def targets(self, host: str, port: int) -> list[AddrInfoType]:
        """Where `host`, a name or an address, may be dialled. Raises Failure."""
        try:
            is_name = literal_address(host) is None
            known = await self._names.addresses(host, port) if is_name else [host]
        except OSError as exc:
            raise not_connected(exc, reason="name") from exc
        return [_target(address, port) for address in known]

    async def dial(self, targets: Sequence[AddrInfoType]) -> socket.socket:
        """A connected socket that does not block, of the first of `targets` that answers. Raises OSError."""
        return await start_connection(
            targets, happy_eyeballs_delay=ATTEMPTS_DELAY_S, socket_factory=self._open_guarded
        )

    def _open_guarded(self, target: AddrInfoType) -> socket.socket:
        """Raises AddressRefused, and OSError when only the process's reserved descriptors are left."""
        family, kind, protocol, _, sockaddr = target
        address = ip_address(sockaddr[0])
        if self._policy is not None and not may_dial(address, self._policy):
            raise AddressRefused(address)
        opened = self._open_socket(family, kind, protocol)
        if is_reserved(opened.fileno()):
            opened.close()
            raise OSError(errno.EMFILE, "only reserved descriptors are left")
        return opened


def dialable(answers: Sequence[str], *, policy: AddressPolicy | None) -> Sequence[str]:
    """Those of a name's addresses that may be dialled, in their order.

    A name with public and private addresses is an attack on filters that try one after the other: it is refused
    as a whole when one of its addresses may not be dialled. Where the operator allowed some of them by their
    network, the others are only dropped: "localhost" is also ::1 where just 127.0.0.0/8 was allowed.

    Raises AddressRefused, OSError where there are too many or none, and ValueError for what is no address.
    """
    if len(answers) > MAX_ADDRESSES_PER_ANSWER:
        raise OSError(errno.EMSGSIZE, f"the name has {len(answers)} addresses")
    addresses = [ip_address(answer) for answer in answers]
    if policy is not None:
        by_operator = [
            str(address)
            for address in addresses
            if policy.operator_allows(address) and may_dial(address, policy)
        ]
        if by_operator:
            return by_operator[:MAX_ADDRESSES_PER_NAME]
        for address in addresses:
            if not may_dial(address, policy):
                raise AddressRefused(address)
    if not answers:
        raise OSError(errno.ENODATA, "the name has no address")
    return answers[:MAX_ADDRESSES_PER_NAME]


def may_dial(address: Address, policy: AddressPolicy) -> bool:
    """Whether `policy` allows `address`, and it does not lead back into this machine.

    Raises OSError when there is no room for the socket that finds that out.
    """
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None and not may_dial(mapped, policy):
        return False  # the system dials the IPv4 address itself
    return policy.operator_allows(address) or (policy.allows(address) and not _is_own(address))


def check_own_addresses_are_known() -> None:
    """Raises StartError where every address looks like this machine's own.

    Every image would be answered "can't be reached" there. Blocks for microseconds.
    """
    for setting, addresses in _NOBODYS_ADDRESSES.items():
        if not any(map(_bind_errno, addresses)):
            raise StartError(
                f"{setting} is 1 on this machine, so its own addresses can't be told from others and every "
                f"image would be refused: set it to 0 (sysctl -w {setting}=0)"
            )


def _target(address: str, port: int) -> AddrInfoType:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def _is_own(address: Address) -> bool:
    """Whether `address` is one of this machine's: it may be public, but it leads inside.

    A socket can be bound to an address exactly when it is the machine's own: any of any interface's, and
    those of whole networks that are routed to the machine. No packet is sent. An address counts as own when
    binding fails for another reason than not being it.
    """
    return _bind_errno(address) not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _bind_errno(address: Address) -> int:
    """0 when a socket can be bound to `address`. Raises OSError when there is no room for a socket."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as exc:
        if exc.errno in NO_ROOM:
            raise
        return exc.errno or -1
    return 0
