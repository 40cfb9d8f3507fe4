"""A request's body, within limits of bytes and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from embedder.errors import BodyTooLarge, InvalidRequest
from embedder.runtime.byte_budget import Lease

# A body that arrives a byte at a time would otherwise hold its request open without end.
BODY_TIMEOUT_S = 15.0


async def read_body(request: Request, lease: Lease, *, max_bytes: int) -> bytes:
    """The whole body, counted in `lease` as it arrives.

    Raises BodyTooLarge, InvalidRequest when it does not arrive in BODY_TIMEOUT_S, and Overloaded.
    """
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(limit_bytes=max_bytes, actual_bytes=int(declared))
    chunks, length = list[bytes](), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                chunks.append(chunk)
                length += len(chunk)
                if length > max_bytes:
                    raise BodyTooLarge(limit_bytes=max_bytes)
                lease.add(len(chunk))
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise InvalidRequest("the client went away before its body was complete") from None
    return b"".join(chunks)
