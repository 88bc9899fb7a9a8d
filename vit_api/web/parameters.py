"""Parameters of requests, whichever way they are sent: in the query, as form fields, or in JSON.

Nothing is ignored in silence that a client may rely on: two values for one parameter, or a name that looks like a slip.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from vit_api.errors import BadRequest

Fields = Sequence[tuple[str, Any]]
"""Parameters as they were sent: names and values, of which JSON's have types."""

_SEPARATORS = re.compile(r"^amp;|[-_.\s\[\]?]", re.IGNORECASE)
"""What slips add to names; `amp;` is that of a query copied from HTML."""
_SIMILARITY = 0.75
"""From 0 to 1, by difflib: that of two names of four letters of which one differs."""

_WHOLE = re.compile(r"\+?([0-9]+)(?:\.0*)?")

_SYNONYMS = dict.fromkeys(("k", "n", "limit", "count", "maxresults", "numlabels"), "top_k")
"""Names of the same parameter in other APIs, without separators."""

ALL = "all"
"""For `top_k`: every class."""

_DECIMAL = re.compile(r"(\d{1,4}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
_MAX_FIELDS = 100
_MAX_SHOWN = 64


def collect(known: Collection[str], query: bytes, fields: Fields = ()) -> dict[str, Any]:
    """Return the values of the known parameters in a query and in a body.

    Args:
        known: The names of the parameters.
        query: The query string, as sent.
        fields: What else has parameters, such as the fields of a form. Null and an empty text stand for the default.

    Raises:
        BadRequest: A parameter has two values, is in an object, or an unknown name looks like a known one.
    """
    try:
        sent = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise BadRequest(f"The query has too many parameters. Send at most {_MAX_FIELDS}.") from None
    values: dict[str, Any] = {}
    for name, value in (*sent, *fields[:_MAX_FIELDS]):
        if name not in known:
            refuse_slip(name, known)
            _refuse_nested(name, value, known)
            continue
        plain = _plain(value)
        if plain is not None and str(values.setdefault(name, plain)) != str(plain):
            shown = ", ".join(repr(one)[:_MAX_SHOWN] for one in (values[name], plain))
            raise BadRequest(f"'{name}' has more than one value: {shown}. Send it once.")
    return values


def _plain(value: Any) -> Any:
    """Return a value as most clients write it; None for the empty text of a form's input that was not filled in.

    JSON has one type for numbers, and some languages write all with a fraction, as text, too.
    """
    if isinstance(value, str):
        text = value.strip()
        whole = _WHOLE.fullmatch(text)
        return whole[1] if whole else text or None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse_nested(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse an object that has a known parameter, as in other APIs: ignoring it would silently apply a default.

    Raises:
        BadRequest: It has one.
    """
    inner = next((one for one in value if one in known), None) if isinstance(value, dict) else None
    if inner is not None:
        raise BadRequest(f"'{inner}' is in '{name[:_MAX_SHOWN]}'. Send it beside the image, not in an object.")


def refuse_slip(name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name that is nearly a known one: ignoring it would silently apply a default.

    Raises:
        BadRequest: It differs from a known name by its case, its separators, or a letter or two.
    """
    plain = {_SEPARATORS.sub("", one).lower(): one for one in known}
    sent = _SEPARATORS.sub("", name[:_MAX_SHOWN]).lower()
    near = difflib.get_close_matches(sent, plain, 1, _SIMILARITY)
    meant = plain[near[0]] if near else _SYNONYMS.get(sent)
    if meant in plain.values():
        raise BadRequest(f"There is no parameter {name[:_MAX_SHOWN]!r}. Did you mean '{meant}'?")


def integer_of(name: str, value: Any, maximum: int) -> int:
    """Return a positive integer, which a query or a form sends as text.

    Args:
        name: The parameter, for the error.
        value: What was sent.
        maximum: The largest value that is accepted.

    Raises:
        BadRequest: It is not an integer from 1 to `maximum`.
    """
    number = parse_integer(value, max_digits=len(str(maximum)) + 1)
    if number is None or not 1 <= number <= maximum:
        raise BadRequest(f"'{name}' must be an integer from 1 to {maximum}, not {repr(value)[:_MAX_SHOWN]}.")
    return number


def top_k_of(value: Any, maximum: int) -> int | None:
    """Return the number of classes that a client asks for; None for `all`.

    Raises:
        BadRequest: It is neither `all` nor an integer from 1 to `maximum`.
    """
    if value == ALL:
        return None
    top_k = parse_integer(value, max_digits=len(str(maximum)) + 1)
    if top_k is None or not 1 <= top_k <= maximum:
        raise BadRequest(f"'top_k' must be an integer from 1 to {maximum}, or '{ALL}', not {repr(value)[:_MAX_SHOWN]}.")
    return top_k


def threshold_of(value: Any) -> float:
    """Return the minimum score that a client asks for, which a query or a form sends as text.

    Raises:
        BadRequest: It is not a number from 0 to 1.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and _DECIMAL.fullmatch(value)):
        number = float(value)
        if 0 <= number <= 1:
            return number
    raise BadRequest(f"'threshold' must be a number from 0 to 1, not {repr(value)[:_MAX_SHOWN]}.")


def parse_integer(value: Any, *, max_digits: int) -> int | None:
    """Return an integer of JSON, or the one that a text of at most `max_digits` digits stands for; else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= max_digits:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
