"""When a correction shows on each ingress replica: `python -m loadgen.corrections`.

    classify  →  feedback, 201  →  every replica answers with it  →  and with nothing else any more

Each replica is asked at its own port, past the proxy, by a loop of its own. Beside the feedback, and again when all
show it, the model is asked anew (`Cache-Control: no-cache`: the answer to that is the model's by contract); such a
prediction is kept late, and must never show. Once idle, once beside an open loop of hits and misses.
"""

import asyncio
import contextlib
import math
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import aiohttp
import numpy as np
import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from loadgen.cli import NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.criteria import Outcome
from loadgen.kept import check_keeping, keep
from loadgen.load import LoadError
from loadgen.local_service import LocalService, one_model_replica, shipped_config, with_replicas
from loadgen.machine import command
from loadgen.peers.processes import interrupted_by_any_signal
from loadgen.readme import stamp, table
from loadgen.report import Report
from loadgen.targets import reason, record
from loadgen.terminal import milliseconds, percent, print_line, print_table
from loadgen.texts import TextSource
from loadgen.traffic import Call, Traffic

MARK = "corrections"
API = "/api/v1/intents"
REPLICAS = 3
MAX_MS, USUAL_MS, USUAL_SHARE = 250.0, 100.0, 0.95
GIVE_UP_S = 5.0
TIMEOUT_S = 10.0
LOAD_S = 3600.0
UNDER_WAY = "in flight"
"""What a load's progress says (`display.line_of`) once it is sent."""
START_S = 60.0
PAUSE_S = 0.2
STOP_S = 30.0
CREATED = 201


class Plan(BaseModel):
    """How many corrections, and how each is watched; `rate` is the load's, 0 for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(100, ge=1)
    rate: float = Field(100.0, ge=0)
    poll_s: float = Field(0.003, ge=0, description="Between an answer and the next question to the same replica.")
    hold_s: float = Field(1.0, ge=0, description="How long each must stay, once every replica shows it.")


class Seen(NamedTuple):
    """An answer: when it came, on `time.perf_counter`, and its `X-Cache`, or what was wrong with it."""

    at_s: float
    state: str


class Sighting(BaseModel):
    """One correction at one replica: when it first showed, None if never, and how many later answers were another."""

    shown_ms: float | None
    others: int


class Watched(BaseModel):
    """All corrections under one condition; `corrections` has for each one a sighting a replica, in their order."""

    condition: str
    replicas: list[str]
    corrections: list[list[Sighting]]
    load: str


class Found(BaseModel):
    """Everything that was measured."""

    command: str
    stamp: str
    plan: Plan
    watched: list[Watched]


@dataclass(frozen=True, slots=True)
class Door:
    """Where the service is asked: behind its proxy, or at one replica. Connections are kept."""

    url: str
    session: aiohttp.ClientSession

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator[Self]:
        """Ask at `url` inside the block."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            yield cls(url, session)

    async def ask(self, text: str, **headers: str) -> Seen:
        """Classify a text; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            async with self.session.post(f"{self.url}{API}/classify", json={"text": text}, headers=named) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Seen(time.perf_counter(), reason(error))
        return Seen(time.perf_counter(), answer.headers.get("X-Cache", "") if answer.ok else f"status {answer.status}")

    async def intent(self, text: str) -> str:
        """What the service takes a text for.

        Raises:
            LoadError: it does not say.
        """
        answer = await self._post("classify", {"text": text})
        return str(answer["intent"])

    async def correct(self, text: str, intent: str) -> float:
        """Submit a correction; when the 201 came.

        Raises:
            LoadError: it was not accepted.
        """
        await self._post("feedback", record(Call(0, None, "feedback", (text,), correction=True), intent), CREATED)
        return time.perf_counter()

    async def _post(self, call: str, body: object, status: int = 200) -> dict[str, object]:
        url = f"{self.url}{API}/{call}"
        try:
            async with self.session.post(url, json=body) as answer:
                said = await answer.text()
                if answer.status != status:
                    raise LoadError(f"{url} answers {answer.status}: {said[:200]}")
                return dict(await answer.json())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LoadError(f"nothing answers at {url}: {reason(error)}") from error


class Watch:
    """Asks one replica for one text, over and over, and keeps what it answered."""

    def __init__(self, door: Door, text: str, poll_s: float) -> None:
        self.seen: list[Seen] = []
        self.shown = asyncio.Event()
        self._door = door
        self._text = text
        self._poll_s = poll_s

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self.seen.append(await self._door.ask(self._text))
            if self.seen[-1].state == "correction":
                self.shown.set()
            await asyncio.sleep(self._poll_s)


async def observe(front: Door, replicas: Sequence[Door], text: str, plan: Plan) -> list[Sighting]:
    """Correct a text and watch each replica; takes a second or two.

    Raises:
        LoadError: nobody answers, or the correction is refused.
    """
    intent = await front.intent(text)
    await asyncio.gather(*(replica.ask(text) for replica in replicas))  # kept by each: what must not show any more
    watches = [Watch(replica, text, plan.poll_s) for replica in replicas]
    async with _asking(watches):
        late = asyncio.create_task(front.ask(text, Cache_Control="no-cache"))
        accepted_s = await front.correct(text, intent)
        await late
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_S):
                await asyncio.gather(*(watch.shown.wait() for watch in watches))
        await asyncio.gather(*(replica.ask(text, Cache_Control="no-cache") for replica in replicas))
        await asyncio.sleep(plan.hold_s)
    return [sighting(watch.seen, accepted_s) for watch in watches]


@contextlib.asynccontextmanager
async def _asking(watches: Sequence[Watch]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sighting(seen: Sequence[Seen], accepted_s: float) -> Sighting:
    """When the correction first showed after its 201, 0 where it did before that, and what came after it."""
    first = next((number for number, each in enumerate(seen) if each.state == "correction"), None)
    if first is None:
        return Sighting(shown_ms=None, others=0)
    return Sighting(
        shown_ms=max(0.0, (seen[first].at_s - accepted_s) * 1000),
        others=sum(each.state != "correction" for each in seen[first:]),
    )


async def observe_all(url: str, replicas: Sequence[str], plan: Plan) -> list[list[Sighting]]:
    """Correct `plan.count` texts that nobody has sent, one after another."""
    texts = {"texts": "unique", "text_seed": secrets.randbelow(2**31), "lengths": "12:1"}
    source = TextSource(Traffic.model_validate(texts))
    async with contextlib.AsyncExitStack() as stack:
        front = await stack.enter_async_context(Door.opened(url))
        doors = [await stack.enter_async_context(Door.opened(replica)) for replica in replicas]
        return [await observe(front, doors, source.text(number), plan) for number in range(plan.count)]


def run_plan(plan: Plan, url: str, replicas: Sequence[str]) -> Found:
    """Watch the corrections, idle and then under load; blocks until it is over.

    Raises:
        LoadError: nobody answers, a correction is refused, or the load does not run.
        KeyboardInterrupt: as it says.
    """
    _tell(f"{plan.count} corrections, {len(replicas)} ingress replicas")
    idle = asyncio.run(observe_all(url, replicas, plan))
    watched = [Watched(condition="idle", replicas=list(replicas), corrections=idle, load="")]
    if plan.rate:
        _tell(f"the same beside {plan.rate:g} calls/s")
        with LoadBeside(url, plan.rate) as beside:
            loaded = asyncio.run(observe_all(url, replicas, plan))
        condition = f"{plan.rate:g} calls/s"
        watched.append(
            Watched(condition=condition, replicas=list(replicas), corrections=loaded, load=told(beside.report))
        )
    return Found(command=command(), stamp=stamp(), plan=plan, watched=watched)


class LoadBeside:
    """An open loop in a process of its own, running inside the block; then `report` says what became of it."""

    def __init__(self, url: str, rate: float) -> None:
        self.report: Report
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name) / "load.json"
        self._log = Path(self._folder.name) / "load.log"
        self._command = [
            sys.executable, "-m", "loadgen", "run", "--target", url, "--rate", f"{rate:g}", "--duration", f"{LOAD_S:g}",
            "--lengths", "12:1", "--settle", "0", "--max-lag-ms", "1000", "--out", str(self._out),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 — our own command
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_under_way()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check_runs()
        finally:
            self._end(keeps_report=kind is None)

    def _wait_until_under_way(self) -> None:
        deadline_s = time.monotonic() + START_S
        while UNDER_WAY not in self._log.read_text(errors="replace"):
            self._check_runs()
            if time.monotonic() > deadline_s:
                raise LoadError(f"the load beside it does not begin within {START_S:g} s")
            time.sleep(PAUSE_S)

    def _check_runs(self) -> None:
        if self._process.poll() is not None:
            raise LoadError(f"the load beside it ended: {self._log.read_text(errors='replace')[-300:]}")

    def _end(self, *, keeps_report: bool = False) -> None:
        """End it as Ctrl-C does: it then reports what it saw."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._folder:
            if keeps_report and self._out.is_file():
                self.report = Report.read(self._out)
            elif keeps_report:
                raise LoadError(f"the load beside it did not report: {self._log.read_text(errors='replace')[-300:]}")


def told(load: Report) -> str:
    """What became of the load, in a few words."""
    hits = "no hits" if load.hit_rate is None else f"{percent(load.hit_rate)} hits"
    return f"{load.answered_per_s:.0f} answers/s, {hits}, {percent(load.error_rate)} failed"


def outcomes(found: Found) -> Iterator[Outcome]:
    """What is promised of every correction, and whether it was kept."""
    for watched in found.watched:
        yield from _outcomes(watched)


def _outcomes(watched: Watched) -> Iterator[Outcome]:
    slowest_ms = [max(map(_shown_ms, replicas)) for replicas in watched.corrections]
    total, worst = len(slowest_ms), max(slowest_ms)
    in_time, usual = (sum(each <= limit for each in slowest_ms) for limit in (MAX_MS, USUAL_MS))
    yield Outcome(
        in_time == total,
        worst,
        f"{watched.condition}: {in_time} of {total} corrections on every replica within {MAX_MS:g} ms "
        f"(the slowest: {_latency(worst)}); all of them",
    )
    yield Outcome(
        usual >= USUAL_SHARE * total,
        usual / total,
        f"{watched.condition}: {usual} of {total} within {USUAL_MS:g} ms; {USUAL_SHARE:.0%} of them",
    )
    others = sum(each.others for replicas in watched.corrections for each in replicas)
    yield Outcome(
        not others, others, f"{watched.condition}: {others:,} other answers at a replica that had shown it; none"
    )


def _shown_ms(seen: Sighting) -> float:
    return math.inf if seen.shown_ms is None else seen.shown_ms


def _latency(value_ms: float) -> str:
    return f"{milliseconds(value_ms)} ms" if math.isfinite(value_ms) else "never"


HEAD = (
    "condition",
    "replica",
    "p50, ms",
    "p95, ms",
    "max, ms",
    f"over {USUAL_MS:g} ms",
    f"over {MAX_MS:g} ms",
    "others after it",
)


def rows(found: Found) -> Iterator[tuple[str, ...]]:
    """The table, a row for each condition and replica, under `HEAD`."""
    for watched in found.watched:
        for number in range(len(watched.replicas)):
            yield _row(watched.condition, number, [replicas[number] for replicas in watched.corrections])


def _row(condition: str, number: int, sightings: Sequence[Sighting]) -> tuple[str, ...]:
    shown_ms = np.array([*map(_shown_ms, sightings)])
    at_most = np.quantile(shown_ms, (0.5, 0.95, 1), method="higher")
    return (
        condition,
        str(number + 1),
        *(milliseconds(each) if math.isfinite(each) else "never" for each in at_most),
        *(str(int((shown_ms > limit).sum())) for limit in (USUAL_MS, MAX_MS)),
        str(sum(each.others for each in sightings)),
    )


def render(found: Found, console: Console) -> None:
    """Print the replicas and what they are held against."""
    print_table(console, HEAD, rows(found), left=2)
    for watched in found.watched:
        if watched.load:
            print_line(console, f"the load: {watched.load}")
    for outcome in outcomes(found):
        print_line(console, outcome.line, "green" if outcome.held else "bold red")


def markdown(found: Found) -> str:
    """The same for a README."""
    load = "".join(f"; the load: {watched.load}" for watched in found.watched if watched.load)
    heading = (
        f"{found.stamp}; one model replica; service, stores, load and watchers share it{load}; from the 201 on, each "
        f"replica asked every {found.plan.poll_s * 1000:g} ms. `{found.command}`"
    )
    lines = (f"- {outcome.line}" for outcome in outcomes(found))
    return "\n".join([heading, "", table(HEAD, rows(found)), "", *lines])


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.corrections",
        "python -m loadgen.corrections --readme README.md",
        "python -m loadgen.corrections --count 10 --rate 0",
        "python -m loadgen.corrections --target http://127.0.0.1:8000 --replica http://127.0.0.1:30000",
    )
)
def main(
    target: Annotated[
        str | None, typer.Option("--target", "--url", help="A running service; one is started here when absent.")
    ] = None,
    replica: Annotated[
        list[str] | None, typer.Option(help="Where an ingress replica of the target listens itself; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(help="Corrections under each condition; they are really recorded.")] = 100,
    rate: Annotated[float, typer.Option(help="Calls a second of the load beside them; 0 for idle alone.")] = 100.0,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Correct texts and see when each ingress replica answers so, and whether it ever answers otherwise again."""
    with clear_errors(), interrupted_by_any_signal():
        check_keeping(out, readme, MARK)
        plan: Plan = built(Plan, count=count, rate=rate)
        with _service(target, replica or ()) as (url, replicas):
            result = run_plan(plan, url, replicas)
        keep(result, out, readme, MARK, markdown(result))
        render(result, Console())
    sys.exit(0 if all(outcome.held for outcome in outcomes(result)) else NOT_BELIEVED)


@contextlib.contextmanager
def _service(target: str | None, replicas: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """The service's address and those of its ingress replicas: what the user gave, or what is started here.

    Raises:
        ValueError: only one of both was given.
        LoadError: it does not start, or with other replicas than asked for.
    """
    if bool(target) != bool(replicas):
        raise ValueError(
            "--target and --replica go together: a running service does not tell where its replicas listen"
        )
    if target:
        yield target.rstrip("/"), [each.rstrip("/") for each in replicas]
        return
    _tell(f"starting the service with {REPLICAS} ingress replicas and one model replica")
    with LocalService(config=with_replicas(one_model_replica(shipped_config()), "Ingress", REPLICAS)) as service:
        _tell(f"it answers after {service.started_in_s:.1f} s")
        if len(found := service.ingress_urls()) != REPLICAS:
            raise LoadError(f"{len(found)} ingress replicas listen, not {REPLICAS}: {', '.join(found)}")
        yield service.url, found


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    run_app(app, "python -m loadgen.corrections")
