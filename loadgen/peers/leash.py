"""Becomes a server that ends when the contest does: `python leash.py <parent pid> <niceness> <program> <argument>…`.

Run as a file in a bare interpreter. The kernel sends SIGTERM even when the contest was ended by SIGKILL (prctl(2),
PR_SET_PDEATHSIG); what the server starts itself is found by its mark (`processes`).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, niceness: int, command: list[str]) -> None:
    """Tie this process to `parent`, lower its priority, then become `command`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    os.nice(niceness)
    os.execv(command[0], command)  # noqa: S606 — the caller gives a full path and its arguments, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
