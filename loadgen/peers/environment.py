"""The peers' own environment: made on demand, found again by its requirements, never mixed with this one."""

import hashlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from loadgen.load import LoadError

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT_S = 5
SHOWN = ("Collecting ", "Installing collected ", "ERROR")

Tell = Callable[[str], None]


def pins(requirements: str) -> dict[str, str]:
    """Version by package, without comments and extras."""
    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {name.partition("[")[0]: version for name, version in pairs}


def default_folder(requirements: str | None = None, cache: Path | None = None) -> Path:
    """Where the environment for these requirements and this Python lies; other requirements are another folder."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = sorted(pins(REQUIREMENTS.read_text() if requirements is None else requirements).items())
    digest = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()
    return cache / "intentgraph" / f"peers-{digest[:12]}"


def prepare(folder: Path, tell: Tell, *, index: str = CPU_INDEX) -> Path:
    """Make the environment, or complete it, and give its Python; at once when nothing is missing.

    `index` is one that has torch's CPU build; it is used when it answers.

    Raises:
        LoadError: it cannot be made; pip's words are in the log beside it.
    """
    python = folder / "bin" / "python"
    if not missing(folder):
        return python
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    tell(f"making the peers' environment in {folder}: some minutes and 1.7 GB, once")
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)], log, tell)
    extra = ["--extra-index-url", index] if _answers(index) else []
    _run(
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", *extra, "-r", str(REQUIREMENTS)], log, tell
    )
    if lacking := missing(folder):
        raise LoadError(f"{folder} lacks {', '.join(lacking)} after installing; delete it and start again (log: {log})")
    return python


def missing(folder: Path) -> list[str]:
    """Which pinned packages the environment does not have in their version."""
    found = versions(folder)
    wanted = pins(REQUIREMENTS.read_text())
    return [
        f"{name}=={version}" for name, version in wanted.items() if found.get(name, "").partition("+")[0] != version
    ]


def versions(folder: Path) -> dict[str, str]:
    """The versions of the pinned packages that the environment has."""
    site = [str(path) for path in folder.glob("lib/python*/site-packages")]
    found = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions(path=site)}
    return {name: found[name] for name in pins(REQUIREMENTS.read_text()) if name in found}


def _answers(index: str) -> bool:
    if not index.startswith(("https://", "http://")):
        return False
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=INDEX_TIMEOUT_S):  # noqa: S310 — the scheme is checked
            return True
    except (OSError, ValueError):
        return False


def _run(command: list[str], log: Path, tell: Tell) -> None:
    with log.open("a", encoding="utf-8") as kept:
        for line in _lines(command):
            kept.write(line)
            if line.startswith(SHOWN):
                tell(f"  {line.partition(' (from')[0].strip()[:100]}")


def _lines(command: list[str]) -> Iterator[str]:
    """What a command says, as it says it.

    Raises:
        LoadError: it failed.
    """
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        assert process.stdout
        for line in process.stdout:
            last = line.strip() or last
            yield line
    if process.returncode:
        raise LoadError(f"`{' '.join(command[1:4])} …` failed: {last or f'exit code {process.returncode}'}")
