"""Becomes the program that its arguments name, which gets SIGTERM when the process that started it dies.

    python run_child.py PARENT PROGRAM [ARGUMENT...]

Ray kills replicas with SIGKILL, after which no other process would stop their children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); it outlives execve(2)


def main() -> None:
    """Ask the kernel for the signal and run the program."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(parent):
        sys.exit("The parent died.")  # before it could be asked for
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
