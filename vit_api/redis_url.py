"""Checks the URL of a Redis. Messages never quote it, since it may contain a password."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, parse_qsl, urlsplit

SCHEMES = ("redis://", "rediss://", "unix://")
_FORMS = "redis://host:port/database, rediss://host:port/database, unix://path"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_VALUES = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}


def check_redis_url(url: str) -> None:
    """Check a URL for redis-py. TLS (`rediss://`) takes the options of redis-py for certificates, and no others.

    Raises:
        ValueError: The URL can't be used; the message says what is allowed.
    """
    if "sentinel" in url.partition("://")[0].lower():
        raise ValueError(
            "Redis Sentinel is not supported. Set the URL of the master, or of a proxy or service that follows it"
        )
    try:
        parts = urlsplit(url)
        is_address = _is_address(parts)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        is_address, options = False, []
    has_options = parts.query != "" if is_address else False
    if not is_address or not url.startswith(SCHEMES) or parts.fragment or (has_options and parts.scheme != "rediss"):
        raise ValueError(
            f"Input should be {_FORMS}, without options except rediss:// with ssl_ca_certs and the like. "
            "Percent-encode special characters in a password."
        )
    _check_options(dict(options))


def _is_address(parts: SplitResult) -> bool:
    if parts.scheme == "unix":
        return bool(parts.path)
    database = parts.path.removeprefix("/")
    return bool(parts.hostname) and parts.port != 0 and (not database or database.isdecimal())


def _check_options(options: dict[str, str]) -> None:
    for name, value in options.items():
        if name not in _FILES and name not in _VALUES:
            allowed = ", ".join((*_FILES, *_VALUES))
            raise ValueError(f"The options of a rediss:// URL are {allowed}; {name[:40]!r} is not one of them")
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"{name} should be {' or '.join(_VALUES[name])}")
    if not options:
        return
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that it is the key of")
    import ssl  # not at the top: most servers never need it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load("ssl_ca_certs", options, lambda path: context.load_verify_locations(cafile=path))
    _load("ssl_certfile", options, lambda path: context.load_cert_chain(path, options.get("ssl_keyfile")))


def _load(name: str, options: Mapping[str, str], load: Callable[[str], None]) -> None:
    if name in options:
        try:
            load(options[name])
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"{name} names a file that can't be used ({error.strerror or error})") from None
