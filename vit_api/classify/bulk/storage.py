"""Folders and files, local or in an object store, by name: a path or a URI. Knows nothing of images or results."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from vit_api.client.results import UnreadableInput

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_S3_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class StorageError(Exception):
    """A location can't be read or written; the message says why."""


def is_uri(name: str) -> bool:
    """Return whether the name is that of an object store, and not a local path."""
    return _SCHEME.match(name) is not None


def open_location(name: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it.

    Schemes that pyarrow does not know are left to fsspec. The environment has the credentials, as for other programs.

    Raises:
        StorageError: There is no such kind of store, or it can't be reached.
    """
    if not is_uri(name):
        return _local(), os.path.abspath(name)  # noqa: PTH100 - must not resolve links
    scheme, rest = name.split("://", 1)
    if scheme == "file":
        return _local(), rest
    try:
        if scheme == "s3":
            return _s3(rest.partition("/")[0]), rest
        return _other(scheme, rest.partition("/")[0]), rest
    except (ImportError, OSError, ValueError) as error:
        raise StorageError(f"{name!r} can't be opened: {_reason(error)}.") from error


def read_file(name: str, folder: str) -> bytes:
    """Read a whole file.

    Args:
        name: Its path or URI.
        folder: What relative paths are relative to.

    Raises:
        UnreadableInput: It can't be read.
    """
    try:
        if not is_uri(name):
            with open(os.path.join(folder, name), "rb") as file:  # noqa: PTH118, PTH123 - surrogates, and fast
                return file.read()
        filesystem, path = open_location(name)
        with filesystem.open_input_file(path) as stored:
            content: bytes = stored.read()
            return content
    except (OSError, ValueError, StorageError) as error:  # ValueError: the name contains a null character
        raise UnreadableInput(f"The file {name!r} can't be read: {_reason(error)}.") from error


def list_files(name: str) -> Iterator[str]:
    """Yield the files of a folder in an object store, at any depth, as URIs in the order of their names; or the file.

    Raises:
        StorageError: It can't be listed.
    """
    scheme = name.split("://", 1)[0]
    filesystem, path = open_location(name)
    try:
        (info,) = filesystem.get_file_info([path])
        if info.type == fs.FileType.NotFound:
            raise StorageError(f"There is no {name!r}.")
        if info.type == fs.FileType.File:
            yield name
        else:
            for file in _walk(filesystem, path.rstrip("/")):
                yield f"{scheme}://{file}"
    except OSError as error:
        raise StorageError(f"{name!r} can't be listed: {_reason(error)}.") from error


@contextlib.contextmanager
def new_file(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Write a file that appears whole when the context ends, or not at all: also if the process is killed.

    Raises:
        StorageError: It can't be written.
    """
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    unfinished = _hidden(path) if is_local else path  # object stores show a file once it is closed
    try:
        with filesystem.open_output_stream(unfinished) as stream:
            try:
                yield stream
            except BaseException:
                stream.close()
                filesystem.delete_file(unfinished)
                raise
        if is_local:
            _sync(unfinished)
            os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        raise StorageError(f"{path!r} can't be written: {_reason(error)}.") from error


def _hidden(path: str) -> str:
    """Return the path of an unfinished file. Readers of a folder of Parquet files skip names that start with a dot."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.getpid()}")  # noqa: PTH118


def _sync(path: str) -> None:
    """Have the content on the disk before the name is: results must not be empty after a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(filesystem: fs.FileSystem, folder: str) -> Iterator[str]:
    """Yield files folder by folder, so that only one folder's listing is in memory."""
    infos = sorted(filesystem.get_file_info(fs.FileSelector(folder)), key=lambda info: info.path)
    yield from (info.path for info in infos if info.type == fs.FileType.File)
    for info in infos:
        if info.type == fs.FileType.Directory and not info.base_name.startswith("."):
            yield from _walk(filesystem, info.path)


@functools.cache
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@functools.cache
def _s3(bucket: str) -> fs.S3FileSystem:
    endpoint = next(filter(None, map(os.environ.get, _S3_ENDPOINTS)), None)
    region = next(filter(None, map(os.environ.get, _S3_REGIONS)), None)
    if endpoint is not None:
        address = urlsplit(endpoint)
        return fs.S3FileSystem(scheme=address.scheme, endpoint_override=address.netloc, region=region)
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket))


@functools.cache
def _other(scheme: str, host: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{host}/")[0]
    except (ValueError, pa.ArrowInvalid):
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removesuffix(".")
