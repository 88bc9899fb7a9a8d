"""The client address of a request: the peer's, or the one that trusted proxies report."""

from __future__ import annotations

import pytest

from vit_api.access.client_address import ClientAddresses, parse_networks

_TRUSTED = parse_networks("10.0.0.0/8, 192.0.2.7,fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param("198.51.100.1", ["203.0.113.9"], "198.51.100.1", id="untrusted peer"),
        pytest.param("10.0.0.1", ["203.0.113.9"], "203.0.113.9", id="behind one proxy"),
        pytest.param("10.0.0.1", ["203.0.113.9, 192.0.2.7 ,10.9.9.9"], "203.0.113.9", id="behind three proxies"),
        pytest.param("10.0.0.1", ["1.1.1.1,203.0.113.9,10.9.9.9"], "203.0.113.9", id="forged by the client"),
        pytest.param("10.0.0.1", ["1.1.1.1", "203.0.113.9,192.0.2.7"], "203.0.113.9", id="two headers"),
        pytest.param("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3", id="only proxies: the farthest one"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="request of a proxy"),
        pytest.param("10.0.0.1", ["1.1.1.1, nonsense, 10.0.0.2"], "10.0.0.2", id="malformed entry"),
        pytest.param("10.0.0.1", ["203.0.113.9, "], "10.0.0.1", id="empty entry"),
        pytest.param("10.0.0.1", ["9" * 60_000], "10.0.0.1", id="long entry"),
        pytest.param("10.0.0.1", ["203.0.113.9:5678"], "203.0.113.9", id="IPv4 with a port"),
        pytest.param("10.0.0.1", ["[2001:db8::5]:5678"], "2001:db8::/64", id="IPv6 with a port"),
        pytest.param("10.0.0.1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64", id="IPv6"),
        pytest.param("fd00::1", ["203.0.113.9"], "203.0.113.9", id="proxy over IPv6"),
        pytest.param("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9", id="IPv4-mapped"),
        pytest.param("fe80::1%eth0", [], "fe80::/64", id="IPv6 zone"),
        pytest.param(None, ["203.0.113.9"], "unknown", id="no peer"),
        pytest.param("testclient", ["203.0.113.9"], "unknown", id="peer without an address"),
    ],
)
def test_the_client_address(peer: str | None, forwarded: list[str], client: str) -> None:
    """It is the nearest address that does not belong to a trusted proxy."""
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"client": None if peer is None else (peer, 1234), "headers": headers}
    assert ClientAddresses(_TRUSTED).of(scope) == client


def test_no_proxy_is_trusted_by_default() -> None:
    """The header is ignored, since any client can send it."""
    scope = {"client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"203.0.113.9")]}
    assert ClientAddresses().of(scope) == "127.0.0.1"


def test_addresses_of_one_network_are_one_client() -> None:
    """All addresses of an IPv6 /64 share one budget."""
    ours = [f"2001:db8:0:1::{number:x}" for number in (1, 2, 0xFFFF)]
    clients = {ClientAddresses().of({"client": (host, 1), "headers": []}) for host in [*ours, "2001:db8:0:2::1"]}
    assert clients == {"2001:db8:0:1::/64", "2001:db8:0:2::/64"}
