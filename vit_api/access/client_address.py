"""The client address of a request: the peer's, or the one that trusted proxies report.

Knows nothing of what an address is used for.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_FORWARDED_FOR = b"x-forwarded-for"
_CACHED_ADDRESSES = 4096
_MAX_ENTRY_LENGTH = 80
_UNKNOWN = "unknown"


def parse_networks(text: str) -> tuple[IPNetwork, ...]:
    """Parse comma-separated addresses and networks (CIDR).

    Raises:
        ValueError: An item is neither.
    """
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"Input should be addresses or networks such as 10.0.0.0/8, with commas; {error}") from None


class ClientAddresses:
    """Determines the addresses of clients.

    Args:
        trusted: Proxies whose `X-Forwarded-For` is trusted.
    """

    def __init__(self, trusted: Sequence[IPNetwork] = ()) -> None:
        self._trusted = trusted

    def of(self, scope: Mapping[str, Any]) -> str:
        """Return the client that an ASGI request counts for: an IPv4 address, or a /64 network of IPv6.

        Each customer gets at least a whole /64 of IPv6 (RFC 6177), so its addresses count as one client.
        """
        return _group(self._host(scope))

    def address_of(self, scope: Mapping[str, Any]) -> str:
        """Return the address of an ASGI request's client, for the log: that which trusted proxies report."""
        return str(_parse(self._host(scope)) or _UNKNOWN)

    def _host(self, scope: Mapping[str, Any]) -> str:
        peer = scope.get("client")
        host: str = peer[0] if peer else _UNKNOWN
        if self._trusted and self._is_trusted(_parse(host)):
            host = self._behind_proxies(host, scope["headers"])
        return host

    def _behind_proxies(self, host: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the nearest address that does not belong to a trusted proxy.

        Each proxy appends the address of its own client, so only the entries that trusted proxies appended are
        reliable: the list is read from the right for as long as it is trusted. Entries further left may be forged.
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

    def _is_trusted(self, address: IPAddress | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


@functools.lru_cache(_CACHED_ADDRESSES)
def _group(host: str) -> str:
    address = _parse(host)
    if address is None:
        return _UNKNOWN
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _parse(text: str) -> IPAddress | None:
    """Return the address of an entry, which may have a port; None if it is malformed."""
    return _parse_short(text.strip()) if len(text) <= _MAX_ENTRY_LENGTH else None


@functools.lru_cache(_CACHED_ADDRESSES)
def _parse_short(text: str) -> IPAddress | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket reports IPv4 peers as IPv4-mapped addresses.
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
