"""What a contest found: its document, and what follows from the figures of each repeat.

A ratio says how many times better this service is: answers a second over those of the other, or the other's median
latency over ours where one connection asks. It is the ratio of the medians; its range is that of the repeats, each of
which had both on the machine within minutes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from loadgen.report import Machine


class Document(BaseModel):
    """A part of the document; frozen, and strict about what it is read from."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(Document):
    """What one measurement found. Latencies are of a closed loop: they hide what a stall would have held back."""

    task: str
    contestant: str
    repeat: int
    answers: int
    answered_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_rate: float
    hit_rate: float | None
    doubts: list[str]


class Task(Document):
    """What the contestants of a task are asked, and which figure decides."""

    name: str
    what: str
    texts: Literal["hits", "unique"]
    connections: int

    @property
    def decided_by(self) -> Literal["answered_per_s", "p50_ms"]:
        """Throughput where many ask, latency where one does."""
        return "answered_per_s" if self.connections > 1 else "p50_ms"


class Spread(Document):
    """The median of the repeats, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        """Summarise at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


class Standing(Document):
    """A contestant in a task. `ratio` is None without this service's figures, and 1 for itself."""

    task: str
    contestant: str
    repeats: int
    answered_per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    ratio: Spread | None
    doubts: list[str]


class Contest(Document):
    """A contest, whole or as far as it came."""

    schema_version: Literal[1] = 1
    started_at: str
    command: str
    machine: Machine
    versions: dict[str, str]
    peer_versions: dict[str, str]
    commit: str | None
    settings: dict[str, Any]
    contestants: dict[str, str]
    tasks: list[Task]
    reference: str
    figures: list[Figures]
    ended: str

    @property
    def complete(self) -> bool:
        """Whether everything that was to be measured was, and nothing speaks against it."""
        return self.ended == "complete" and not any(each.doubts for each in self.figures)

    def standings(self, task: Task) -> Iterator[Standing]:
        """The contestants of a task that were measured, in the order they are listed."""
        ours = self._of(task, self.reference)
        for name in self.contestants:
            if theirs := self._of(task, name):
                yield Standing(
                    task=task.name,
                    contestant=name,
                    repeats=len(theirs),
                    answered_per_s=Spread.of([each.answered_per_s for each in theirs.values()]),
                    p50_ms=Spread.of([each.p50_ms for each in theirs.values()]),
                    p99_ms=Spread.of([each.p99_ms for each in theirs.values()]),
                    ratio=ratio(task, ours, theirs),
                    doubts=[doubt for each in theirs.values() for doubt in each.doubts],
                )

    def _of(self, task: Task, contestant: str) -> dict[int, Figures]:
        return {each.repeat: each for each in self.figures if (each.task, each.contestant) == (task.name, contestant)}

    def write(self, path: Path) -> None:
        """Write the document, with the standings for those who only read; whole or not at all."""
        document = self.model_dump(mode="json")
        document["standings"] = [each.model_dump(mode="json") for task in self.tasks for each in self.standings(task)]
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)


def ratio(task: Task, ours: dict[int, Figures], theirs: dict[int, Figures]) -> Spread | None:
    """How many times better ours are, over the repeats that have both: of the medians, and the least and the most.

    None where no repeat has both.
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    by_repeat = [_times_better(task, [ours[each]], [theirs[each]]) for each in both]
    of_medians = _times_better(task, [ours[each] for each in both], [theirs[each] for each in both])
    return Spread(median=of_medians, low=min(by_repeat), high=max(by_repeat))


def _times_better(task: Task, ours: list[Figures], theirs: list[Figures]) -> float:
    figure = task.decided_by
    mine, other = (median(getattr(each, figure) for each in side) for side in (ours, theirs))
    above, below = (mine, other) if figure == "answered_per_s" else (other, mine)
    return float(above / below) if below else float("inf")
