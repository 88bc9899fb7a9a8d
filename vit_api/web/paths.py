"""Paths as clients mistype them: with slashes at the end, or several in a row. Knows nothing of what is served."""

from __future__ import annotations


def plain_path(path: str) -> str | None:
    """Return a path without its empty segments; None if it has none."""
    if "//" not in path and (not path.endswith("/") or path == "/"):
        return None
    return "/" + "/".join(filter(None, path.split("/")))


def relative_location(raw_path: bytes, query: bytes) -> bytes:
    """Return a `Location` that leads from a path to the one without empty segments, with the same query.

    It is relative, for proxies that strip a prefix, and never begins with two slashes, which would name another host.
    Python's `urljoin` leaves out empty segments first (RFC 3986, section 5.2.4, does not): behind such a proxy, its
    users miss the path after several slashes in a row, but not after one at the end.

    Args:
        raw_path: The path, as sent.
        query: The query string, as sent.
    """
    steps = b"../" * (raw_path.count(b"/") - 1)
    location = steps + b"/".join(filter(None, raw_path.split(b"/")))
    return location + b"?" + query if query else location
