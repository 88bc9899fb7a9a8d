"""What a client asks for in header fields: how urgent its request is, and how long it will wait.

`Priority` is that of RFC 9218, a dictionary of RFC 9651; `Prefer` is that of RFC 7240. What is malformed is ignored, as
both demand. Pure; knows nothing of requests.
"""

from __future__ import annotations

import re

from vit_api.urgency import Urgency

PRIORITY = b"priority"
PREFER = b"prefer"

MAX_NORMAL = 3
"""The highest `u` of normal urgency, which is also that of a request that does not say (RFC 9218, section 4.1)."""

_MAX_URGENCY = 7

_STRING = rb'"(?:[ !#-\[\]-~]|\\["\\])*"'
_BARE = b"(?:%s)" % b"|".join(
    (
        rb"-?[0-9]{1,15}(?:\.[0-9]{1,3})?",  # an integer or a decimal
        _STRING,
        rb"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*",  # a token
        rb":[A-Za-z0-9+/=]*:",  # bytes
        rb"\?[01]",  # a boolean
        rb"@-?[0-9]{1,15}",  # a date
        b"%" + _STRING,  # a display string
    )
)
_KEY = rb"[a-z*][a-z0-9_.*-]*"
_PARAMETERS = rb"(?: *[;] *%s(?:=%s)?)*" % (_KEY, _BARE)
_ITEM = _BARE + _PARAMETERS
_INNER_LIST = rb"\( *(?:%s(?: +%s)*)? *\)%s" % (_ITEM, _ITEM, _PARAMETERS)
_MEMBER = re.compile(rb"(%s)(?:=(%s|%s)|%s)" % (_KEY, _INNER_LIST, _ITEM, _PARAMETERS))
_COMMA = re.compile(rb"[ \t]*,[ \t]*")
_INTEGER = re.compile(rb"(-?[0-9]{1,15})(?![0-9.])")

_USUAL = {
    field: Urgency.NORMAL if u <= MAX_NORMAL else Urgency.LOW
    for u in range(_MAX_URGENCY + 1)
    for field in (b"u=%d" % u, b"u=%d, i" % u, b"u=%d,i" % u)
}
"""What nearly all clients send; browsers add `i`."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_WORD = rb'(?:%s|"(?:[^"\\]|\\.)*")' % _TOKEN
_PREFERENCE = re.compile(
    rb"(%s)(?:[ \t]*=[ \t]*(%s))?(?:[ \t]*;[ \t]*(?:%s(?:[ \t]*=[ \t]*%s)?)?)*[ \t]*" % (_TOKEN, _WORD, _TOKEN, _WORD)
)
_MAX_WAIT_DIGITS = 9


def urgency_of(field: bytes) -> Urgency:
    """Return the urgency in a `Priority` field, whose lines are joined by commas.

    Of `u`, which is 0 to 7, up to 3 is normal. A field that is no dictionary, and a `u` that is no integer or out of
    range, are ignored.
    """
    usual = _USUAL.get(field)
    if usual is not None:
        return usual
    u = _dictionary(field).get(b"u")
    number = None if u is None else _INTEGER.match(u)
    return Urgency.LOW if number is not None and MAX_NORMAL < int(number[1]) <= _MAX_URGENCY else Urgency.NORMAL


def _dictionary(field: bytes) -> dict[bytes, bytes]:
    """Return the members of a dictionary, each as it was sent; none if it is malformed. See RFC 9651, section 4.2.2."""
    members: dict[bytes, bytes] = {}
    field = field.strip(b" ")
    position = 0
    while position < len(field):
        member = _MEMBER.match(field, position)
        if member is None:
            return {}
        members[member[1]] = member[2] or b"?1"
        position = member.end()
        if position == len(field):
            break
        comma = _COMMA.match(field, position)
        if comma is None or comma.end() == len(field):
            return {}
        position = comma.end()
    return members


def wait_of(field: bytes) -> int | None:
    """Return the seconds of the preference `wait` in a `Prefer` field, whose lines are joined by commas.

    Of several, the first counts. None if there is none, or none that is a number of seconds.
    """
    position = 0
    while position < len(field):
        if field[position] in b", \t":  # RFC 9110, section 5.6.1: empty elements of a list are ignored
            position += 1
            continue
        preference = _PREFERENCE.match(field, position)
        if preference is None:
            return None
        if preference[1].lower() == b"wait":
            digits = (preference[2] or b"").strip(b'"')
            return min(int(digits[: _MAX_WAIT_DIGITS + 1]), 10**_MAX_WAIT_DIGITS) if digits.isdigit() else None
        position = preference.end()
        if field[position : position + 1] not in (b",", b""):
            return None
    return None
