"""Shares of all files: each file is of exactly one, whatever else is listed."""

from __future__ import annotations

import pytest

from vit_api.classify.shards import Shard


def test_each_file_is_of_one_shard() -> None:
    """The shards are about as large as each other."""
    names = [f"s3://bucket/{number}.jpg" for number in range(4000)] + ["\udcff.png"]
    shards = [Shard(number, 8) for number in range(1, 9)]
    counts = [sum(shard.has(name) for name in names) for shard in shards]
    assert sum(counts) == len(names)
    assert min(counts) > 400
    assert all(sum(shard.has(name) for shard in shards) == 1 for name in names)


def test_a_shard_is_named() -> None:
    """Its option and its name in files are parsed back."""
    assert Shard.from_option("3/8") == Shard(3, 8) == Shard.from_name(Shard(3, 8).name)


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "a/b", "-1/8", "3/8/9", "", "1/0"])
def test_an_invalid_shard(text: str) -> None:
    """It is refused."""
    with pytest.raises(ValueError):
        Shard.from_option(text)
