"""Whom a request comes from, by its address: the peer's, or what trusted proxies say of it.

Knows nothing of what is done with an address.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FORWARDED_FOR = b"x-forwarded-for"
_REMEMBERED = 4096
_LONGEST = 80
_UNKNOWN = "unknown"


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return addresses and networks (CIDR) that are separated by commas.

    Raises:
        ValueError: One is neither.
    """
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"Input should be addresses or networks such as 10.0.0.0/8, with commas; {error}") from None


class ClientAddresses:
    """Find out the addresses of clients.

    Args:
        trusted: Proxies whose `X-Forwarded-For` is believed.
    """

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = trusted

    def of(self, scope: Mapping[str, Any]) -> str:
        """Return whom to count an ASGI request for: an IPv4 address, or an IPv6 network of 64 bits.

        A single customer gets a whole /64 of IPv6 at least (RFC 6177), so its addresses count as one.
        """
        peer = scope.get("client")
        host: str = peer[0] if peer else _UNKNOWN
        if self._trusted and self._is_trusted(_parse(host)):
            host = self._behind_proxies(host, scope["headers"])
        return _group(host)

    def _behind_proxies(self, host: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the nearest address that is no trusted proxy's.

        Each proxy appends the address that it was asked from, so only what trusted ones appended is known: the list
        is read from its right end, as far as it is trusted. What is left of that may be invented.
        """
        hops = b",".join(value for name, value in headers if name == _FORWARDED_FOR).decode("latin-1").split(",")
        for hop in reversed(hops):
            address = _parse(hop)
            if address is None:
                break
            host = str(address)
            if not self._is_trusted(address):
                break
        return host

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


@functools.lru_cache(_REMEMBERED)
def _group(host: str) -> str:
    address = _parse(host)
    if address is None:
        return _UNKNOWN
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _parse(text: str) -> Address | None:
    """Return the address in a list's entry, which may have a port; None if there is none."""
    return _parse_short(text.strip()) if len(text) <= _LONGEST else None


@functools.lru_cache(_REMEMBERED)
def _parse_short(text: str) -> Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket for IPv6 and IPv4 names the latter's peers so.
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
