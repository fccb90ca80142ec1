"""Becomes another program that ends when its parent does: `python leash.py <parent pid> <program> <argument>…`.

Run as a file in a bare interpreter (15 ms), not as a `preexec_fn`: that runs Python between fork and exec of a program
with threads. The kernel sends SIGTERM even when the parent was ended by SIGKILL (prctl(2), PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tie this process to `parent`, then become `command`; end quietly if the parent is already gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 — the caller gives a full path and its arguments, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
