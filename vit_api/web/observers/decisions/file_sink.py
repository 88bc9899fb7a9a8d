"""A file of JSON lines to which several processes append. Knows nothing of what the lines say."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence

_MODE = 0o640
_LINE_BREAK = b"\n"


class FileSink:
    """Append whole lines to a file.

    Each batch is one `write` in `O_APPEND` mode under an exclusive `flock`, so lines of several processes never mix,
    whatever their length. What a full disk cuts off is taken back, and a line that a killed process left unfinished
    is ended, so that it damages no other.

    Args:
        path: The file; it is created if it is missing, its directory is not.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def reopen(self) -> None:
        """Open the file of this name before the next write, after it was renamed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def write(self, lines: Sequence[bytes]) -> int:
        """Append lines, and return how many were written: the first ones, if the disk is full.

        Raises:
            OSError: None was written.
        """
        if self._fd < 0:
            self._fd = _open(self._path)
        with _locked(self._fd):
            return self._append(lines)

    def _append(self, lines: Sequence[bytes]) -> int:
        size = os.fstat(self._fd).st_size
        is_torn = size > 0 and os.pread(self._fd, 1, size - 1) not in (_LINE_BREAK, b"")
        start = _LINE_BREAK if is_torn else b""
        data = start + _LINE_BREAK.join(lines) + _LINE_BREAK
        written = os.write(self._fd, data)
        if written == len(data):
            return len(lines)
        whole = data.rfind(_LINE_BREAK, 0, written) + 1
        os.ftruncate(self._fd, size + whole)
        count = data.count(_LINE_BREAK, len(start), max(whole, len(start)))
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return count

    def close(self) -> None:
        """Close the file."""
        self.reopen()


def _open(path: str) -> int:
    """Open a file to append to it; one that is a pipe or a device, where a write may block for ever, is refused.

    Raises:
        OSError: It can't be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, _MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd


@contextlib.contextmanager
def _locked(fd: int) -> Iterator[None]:
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
