"""Who may ask: the Host and Origin headers, and the token.

Any page that someone opens in a browser can send requests to this machine, and can even make the
browser believe that its own name is an address of this machine (DNS rebinding). So without a token,
only names of this machine are accepted.
"""

import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Access:
    """What is required of requests."""

    host: str  # that the server listens on
    token: str | None = None

    def refuse(self, headers: Headers, needs_token: bool) -> tuple[int, str] | None:
        """Status and reason, or None for a request that is allowed."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.token and name_of(host) not in (*LOCAL_NAMES, self.host):
            return 403, "the Host header is not a name of this machine"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "the request comes from a page of another site"
        if self.token and needs_token and not self.is_authorised(headers):
            return 401, "send the token of this server as 'Authorization: Bearer TOKEN'"
        return None

    def is_authorised(self, headers: Headers) -> bool:
        given = headers.get("authorization", "")
        expected = f"Bearer {self.token}"
        return not self.token or hmac.compare_digest(given.encode(), expected.encode())


def name_of(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
