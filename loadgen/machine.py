"""Where and on what a run was made: a figure without its machine is no figure."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from loadgen.report import Machine

PACKAGES = ("intentgraph", "aiohttp", "ray", "torch", "transformers", "redis")
ROOT = Path(__file__).parents[1]


def machine() -> Machine:
    """This machine, and how busy it is."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        load_average_before=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures, those installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line that this process was started with, without the folders of its programs."""
    words = list(sys.orig_argv)
    if len(words) > 1 and not words[1].startswith("-"):
        words = words[1:]  # a script, which names its interpreter itself
    return shlex.join([Path(words[0]).name, *words[1:]])


def commit() -> str | None:
    """The checkout's commit, `-dirty` behind it when files differ from it; None outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(  # noqa: S603 — no word of it comes from outside
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"],  # noqa: S607 — the user's git
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None
