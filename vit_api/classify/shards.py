"""Splits files among several runs, by name alone, so that the runs need not know of each other."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Self

_OPTION = re.compile(r"(\d{1,6})/(\d{1,6})")
_NAME = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """One of several shares of all files, of about the same size.

    Attributes:
        number: Its number, from 1.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def from_option(cls, text: str) -> Self:
        """Parse `3/8`, the third of eight.

        Raises:
            ValueError: It is something else.
        """
        return cls._parse(_OPTION, text)

    @classmethod
    def from_name(cls, text: str) -> Self:
        """Parse the name of a shard.

        Raises:
            ValueError: It is something else.
        """
        return cls._parse(_NAME, text)

    @classmethod
    def _parse(cls, pattern: re.Pattern[str], text: str) -> Self:
        found = pattern.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(text)
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """Its name in the names of files."""
        return f"{self.number}-of-{self.count}"

    def has(self, name: str) -> bool:
        """Return whether a file is of this shard: it depends on its name only, so that each is of exactly one."""
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1
