"""The options of `classify --out`. Imports neither pyarrow nor Ray, which only such runs need."""

from __future__ import annotations

import argparse

from vit_api.classify.shards import Shard
from vit_api.classify.usage import UsageError, integer_up_to

_DEFAULT_PART_SIZE = 512
_MAX_PART_SIZE = 1_000_000
_MAX_WORKERS = 100_000
_ONLY_WITH_OUT = {"resume": False, "engine": None, "part_size": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `classify`."""
    group = parser.add_argument_group("many files")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="write Parquet files there, one row a file: path, sha256, labels, scores, flags, error, code; DIR, like"
        " the inputs, may be in an object store (s3://...), and a Parquet file with a column `path` names inputs",
    )
    group.add_argument("--resume", action="store_true", help="with --out: classify only what is still missing there")
    group.add_argument(
        "--shard",
        type=_shard,
        default=Shard(),
        metavar="K/N",
        help="classify the Kth of N shares of the files, such as 3/8: for N runs that share the work",
    )
    group.add_argument(
        "--part-size",
        type=integer_up_to(_MAX_PART_SIZE),
        metavar="N",
        help=f"with --out: images in a file of results (default: {_DEFAULT_PART_SIZE})",
    )
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        help="with --out: run in this process, or on a Ray cluster, which RAY_ADDRESS names (default: local)",
    )
    group.add_argument(
        "--workers",
        type=integer_up_to(_MAX_WORKERS),
        metavar="N",
        help="with --engine ray: number of models (default: one per GPU of the cluster, or per node if there is none)",
    )


def check_options(arguments: argparse.Namespace) -> None:
    """Check the options, and set their defaults.

    Raises:
        UsageError: They can't be used together.
    """
    if arguments.out is None:
        for name, default in _ONLY_WITH_OUT.items():
            if getattr(arguments, name) != default:
                raise UsageError(f"The option --{name.replace('_', '-')} requires --out.")
        if any("://" in name for name in arguments.files):
            raise UsageError("Files in an object store require --out.")
    elif arguments.url is not None:
        raise UsageError("The option --out runs the model in this process or on Ray: leave out --url.")
    elif arguments.json:
        raise UsageError("The option --out writes Parquet: leave out --json.")
    if arguments.workers is not None and arguments.engine != "ray":
        raise UsageError("The option --workers requires --engine ray.")
    arguments.engine = arguments.engine or "local"
    arguments.part_size = arguments.part_size or _DEFAULT_PART_SIZE


def _shard(text: str) -> Shard:
    try:
        return Shard.from_option(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 3/8, the third of eight, not {text!r}") from None
