"""Our server with the limits on open files that its arguments give: the soft and the hard one."""

from __future__ import annotations

import resource
import sys

from vit_api.__main__ import serve

if __name__ == "__main__":
    soft, hard = map(int, sys.argv[1:])
    del sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sys.exit(serve())
