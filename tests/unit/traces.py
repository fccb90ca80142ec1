"""What a store's server did and in which order, from a trace of its system calls (`strace`)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.unit.conftest import ValkeyServer

CALLS = "fdatasync,fsync,write,writev,pwrite64,pwritev,sendto,sendmsg"
WHOLE = str(2**20)
"""Bytes shown of a call's data: more than a group of records has."""

_CALL = re.compile(r"(\w+)\(\d+<([^>]*)>")
_ENTRY = re.compile(r"\d{13}-\d+")


class TracedValkey(ValkeyServer):
    """A server that `strace` starts: tracing one's own child needs no privilege, attaching to others may."""

    def __init__(self, folder: Path, strace: str, args: tuple[str, ...]) -> None:
        self.program = Path(strace)
        self._trace = folder / "trace"
        super().__init__(folder, args)

    def command(self) -> list[str]:
        """Every thread in one trace, files by their names, data whole."""
        shown = ("-f", "-y", "-qq", "-s", WHOLE, "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(self._trace))
        return ["strace", *shown, str(ValkeyServer.program), *super().command()[1:]]

    def kill(self) -> None:
        """End the server; the trace ends with it."""
        for traced in psutil.Process(self._process.pid).children():
            traced.kill()
        self._process.wait()

    def end(self) -> "Replay":
        """End the server and tell what it did."""
        self.kill()
        return replay(self._trace.read_text(encoding="latin-1"))


@dataclass(frozen=True, slots=True)
class Replay:
    """Which log entries replies named, which of them `early`; replies that were `hasty`; fsyncs that covered writes.

    Early is before the end of an fsync that began after the entry's write had ended. Hasty is any reply, whatever it
    says, while something in the file is not covered yet. A reply leaves when its own write begins.
    """

    acknowledged: set[str]
    early: set[str]
    hasty: int
    fsyncs: int


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A system call on a file or socket; `entries` are the ids of log entries among its data."""

    name: str
    file: str
    entries: frozenset[str]

    @property
    def is_on_log(self) -> bool:
        """Whether it is about the append-only file, and not a client."""
        return self.file.endswith(".incr.aof")

    @property
    def is_fsync(self) -> bool:
        """Whether it has written what was written before it to the disk, once it ended."""
        return self.is_on_log and self.name in ("fdatasync", "fsync")


def replay(trace: str) -> Replay:
    """Follow each write from the file to the disk to the reply."""
    writes: Counter[str] = Counter()
    on_disk: Counter[str] = Counter()
    written: dict[str, tuple[str, int]] = {}
    covered: dict[Call, int] = {}
    acknowledged: set[str] = set()
    early: set[str] = set()
    hasty = 0
    for call, ended in _moments(trace):
        if call.is_fsync and not ended:
            covered[call] = writes[call.file]
        elif call.is_fsync:
            on_disk[call.file] = max(on_disk[call.file], covered[call])
        elif call.is_on_log and ended:
            writes[call.file] += 1
            written |= dict.fromkeys(call.entries, (call.file, writes[call.file]))
        elif not call.is_on_log and not ended:
            acknowledged |= call.entries
            early |= {
                each for each in call.entries if each not in written or written[each][1] > on_disk[written[each][0]]
            }
            hasty += writes > on_disk
    # One that covers nothing is the server's own, at its start.
    return Replay(acknowledged, early, hasty, fsyncs=sum(map(bool, covered.values())))


def _moments(trace: str) -> Iterator[tuple[Call, bool]]:
    """Each call twice: as it begins and, if it succeeds, as it has ended; threads in the order in which they did so."""
    begun: dict[str, Call] = {}
    for line in trace.splitlines():
        thread, _, told = line.partition(" ")
        if match := _CALL.match(told.lstrip()):
            begun[thread] = Call(match[1], match[2], frozenset(_ENTRY.findall(told)))
            yield begun[thread], False
        if thread in begun and not told.endswith("<unfinished ...>"):
            call = begun.pop(thread)
            if " = -1 " not in told[-80:]:
                yield call, True
