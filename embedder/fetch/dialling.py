"""The guard where addresses are dialled.

`GuardedResolver` judges all addresses of a name, `guarded_sockets` the one address of each attempt to
connect, whether it was written in the URL or came from a name or a redirect. Between the two nothing is
looked up again, so that a name can't change its address after it was judged.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

from embedder.errors import StartError
from embedder.fetch.addresses import Address, AddressPolicy
from embedder.runtime.file_limits import is_reserved

# A name with hundreds of addresses would otherwise be dialled until the deadline.
MAX_ADDRESSES_PER_NAME = 8
# Judging one takes 15 µs of the event loop. Over TCP a name server can send four thousand.
MAX_ADDRESSES_PER_ANSWER = 256

# No descriptor or memory is left for a socket, in this process or on this machine.
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Documentation addresses (RFC 5737, 3849, 9637), which no machine has.
_NOBODYS_ADDRESSES = {
    "net.ipv4.ip_nonlocal_bind": (ip_address("192.0.2.1"), ip_address("203.0.113.1")),
    "net.ipv6.ip_nonlocal_bind": (ip_address("2001:db8::1"), ip_address("3fff::1")),
}

OpenSocket = Callable[[int, int, int], socket.socket]
"""`socket.socket`, or a stand-in: (family, type, protocol) → an unconnected socket."""


class AddressRefused(PermissionError):
    """An address that may not be dialled. An OSError, because aiohttp expects those where it connects."""

    def __init__(self, address: Address) -> None:
        self.text = f"{address} is not public, not allowed, or this machine's own"
        super().__init__(errno.EACCES, self.text)


class GuardedResolver(AbstractResolver):
    """Refuses a name as a whole when one of its addresses may not be dialled.

    A name with public and private addresses is an attack on filters that try one after the other. Where the
    operator allowed some of a name's addresses by their network, the others are only dropped: "localhost" is
    also ::1 where just 127.0.0.0/8 was allowed.

    Without a policy every address may be dialled: for the operator's own proxy.
    """

    def __init__(self, resolver: AbstractResolver, policy: AddressPolicy | None) -> None:
        self._resolver = resolver
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            answers = await self._resolver.resolve(host, port, family)
            if len(answers) > MAX_ADDRESSES_PER_ANSWER:
                raise OSError(errno.EMSGSIZE, f"the name has {len(answers)} addresses")
            addresses = [ip_address(answer["host"]) for answer in answers]
        except (TimeoutError, LookupError, RuntimeError, TypeError, ValueError) as exc:
            # Resolvers raise more than OSError, and answer with more than addresses. aiohttp would take a
            # TimeoutError for the deadline.
            raise OSError(errno.EIO, "the look-up failed") from exc
        if self._policy is not None:
            answers = _dialable(answers, addresses, self._policy)
        if not answers:
            raise OSError(errno.ENODATA, "the name has no address")
        return answers[:MAX_ADDRESSES_PER_NAME]

    async def close(self) -> None:
        await self._resolver.close()


def guarded_sockets(
    policy: AddressPolicy | None, open_socket: OpenSocket
) -> Callable[[AddrInfoType], socket.socket]:
    """A socket factory for aiohttp that opens one only for an address that may be dialled.

    It raises AddressRefused, and OSError when only the process's reserved descriptors are left.
    """

    def open_guarded(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address = ip_address(sockaddr[0])
        if policy is not None and not may_dial(address, policy):
            raise AddressRefused(address)
        opened = open_socket(family, kind, protocol)
        if is_reserved(opened.fileno()):
            opened.close()
            raise OSError(errno.EMFILE, "only reserved descriptors are left")
        return opened

    return open_guarded


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


def _dialable(
    answers: list[ResolveResult], addresses: list[Address], policy: AddressPolicy
) -> list[ResolveResult]:
    by_operator = [
        answer
        for answer, address in zip(answers, addresses, strict=True)
        if policy.operator_allows(address) and may_dial(address, policy)
    ]
    if by_operator:
        return by_operator
    for address in addresses:
        if not may_dial(address, policy):
            raise AddressRefused(address)
    return answers


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
