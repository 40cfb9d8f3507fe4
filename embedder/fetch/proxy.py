"""The operator's forward proxy: absolute-form requests for http, a CONNECT tunnel for https."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from yarl import URL


@dataclass(frozen=True)
class Proxy:
    """Proxy.of("http://user:secret@proxy.example:3128") → Proxy(url=URL('http://proxy.example:3128'))"""

    url: URL
    """Without user name and password, so that no error and no log shows them."""
    authorization: str = field(default="", repr=False)

    @classmethod
    def of(cls, text: str) -> Proxy:
        """`text` is "http://host:port" or "http://user:password@host:port", percent-escaped where needed."""
        url = URL(text)
        if url.user is None:
            return cls(url)
        credentials = f"{url.user}:{url.password or ''}".encode()
        return cls(url.with_user(None), f"Basic {base64.b64encode(credentials).decode()}")

    @property
    def host(self) -> str:
        return self.url.raw_host or ""

    @property
    def port(self) -> int:
        return self.url.port or 80

    @property
    def fields(self) -> str:
        """Of what the proxy reads: a CONNECT, or a request over http. An origin must not be told the password."""
        return f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""

    def may_have_answered(self, status: int, url: URL) -> bool:
        """Whether `status` may be the proxy's own: blocked, no password, unresolvable, unreachable.

        Over http that can't be told from the origin's. Clients get one sentence for all of them, because they
        would learn from the proxy's what stands inside the network.
        """
        return url.scheme == "http" and (status in (403, 407) or status >= 500)
