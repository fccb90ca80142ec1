"""Feedback through rounds of `kill -9`: `python -m loadgen.feedback_faults`.

    callers in a hurry → something is killed → well again → the log, its counters and the corrections are checked

A round kills a feedback replica, an ingress replica, the log's store, or now and then every process of Ray, after which
the service is started again on the same data; or it upgrades the application. Callers send on all the while, each
record again until it is acknowledged. Who was told what is `feedback_ledger`'s, what is checked `feedback_checks`'s.
"""

import copy
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any, NamedTuple, Self

import psutil
import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console

from loadgen.cli import NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.criteria import Outcome
from loadgen.feedback_callers import API, Callers
from loadgen.feedback_checks import Checks, Findings, fetched
from loadgen.feedback_ledger import Ledger
from loadgen.http_calls import OK, call
from loadgen.kept import check_keeping, keep
from loadgen.load import LoadError
from loadgen.local_service import LocalService, one_model_replica, shipped_config
from loadgen.machine import command
from loadgen.peers.processes import interrupted_by_any_signal
from loadgen.readme import stamp, table
from loadgen.running_service import RunningService
from loadgen.terminal import print_line, print_table

MARK = "feedback-faults"
WELL_S = 180.0
POLL_S = 0.2
HURRY_S = (0.6, 1.2)
"""How long callers hurry before something is killed: so long that all of them do, and never the same."""
EVERY = 20
"""Of so many rounds one may take the whole of Ray."""
CACHE_TTL_S = 3600


class Kind(StrEnum):
    """What a round does."""

    FEEDBACK = "feedback replica"
    INGRESS = "ingress replica"
    STORE = "store of the log"
    RAY = "the whole of Ray"
    UPGRADE = "upgrade"


KILLED_ALONE = (Kind.FEEDBACK, Kind.INGRESS, Kind.STORE)
DEPLOYMENTS = {Kind.FEEDBACK: "Feedback", Kind.INGRESS: "Ingress"}


class Plan(BaseModel):
    """How many rounds, and who sends meanwhile; `again` is the share of calls that repeat an acknowledged one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(300, ge=1)
    whole_ray: int = Field(15, ge=0)
    upgrades: int = Field(5, ge=0)
    callers: int = Field(8, ge=1)
    again: float = Field(0.05, ge=0, lt=1)
    seed: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _few_of_ray(self) -> Self:
        if self.whole_ray > self.rounds:
            raise ValueError(f"whole_ray is {self.whole_ray} of {self.rounds} rounds")
        return self


def order(plan: Plan) -> list[Kind]:
    """The rounds one after another: as many of each kill in an order of the seed's, Ray's evenly among them.

    Upgrades come beside the rounds that kill.
    """
    rng = Random(f"{plan.seed} rounds")  # noqa: S311 — no secret
    alone = [KILLED_ALONE[number % len(KILLED_ALONE)] for number in range(plan.rounds - plan.whole_ray)]
    rng.shuffle(alone)
    kinds = list(alone)
    for number in range(plan.whole_ray):
        kinds.insert((number + 1) * plan.rounds // plan.whole_ray - 1, Kind.RAY)
    for _ in range(plan.upgrades):
        kinds.insert(rng.randint(0, len(kinds)), Kind.UPGRADE)
    return kinds


class Round(BaseModel):
    """One round: seconds until the service was well again, and in all; records acknowledged and tries that failed."""

    kind: Kind
    well_s: float
    total_s: float
    acknowledged: int
    failed: dict[str, int]


class Told(BaseModel):
    """What callers were told. Those of `sent_again` had been acknowledged before; `unconfirmed` were given up."""

    acknowledged: int
    retried: int
    duplicates: int
    sent_again: int
    unconfirmed: int
    odd: int
    oddities: list[str]

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Sum a ledger up."""
        return cls(
            acknowledged=len(ledger.acknowledged),
            retried=ledger.retried,
            duplicates=ledger.duplicates,
            sent_again=ledger.sent_again,
            unconfirmed=len(ledger.unconfirmed),
            odd=ledger.odd,
            oddities=ledger.oddities,
        )


class Found(BaseModel):
    """Everything that was done and seen; `broken` says why it ended early."""

    command: str
    stamp: str
    plan: Plan
    rounds: list[Round]
    findings: Findings
    told: Told
    seconds: float
    broken: str


class Gone(NamedTuple):
    """What a fault took: the service is well again without it."""

    replicas: frozenset[str] = frozenset()
    store_pid: int | None = None


Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """The service that all this is done to.

    `config` is what it serves by; `start_again` has it serve on the same data once its Ray is gone.
    """

    service: RunningService
    config: Mapping[str, Any]
    start_again: Callable[[], None]


class Rounds:
    """Does the rounds and checks after each."""

    def __init__(self, subject: Subject, callers: Callers, checks: Checks, rng: Random) -> None:
        self._subject = subject
        self._service = subject.service
        self._callers = callers
        self._checks = checks
        self._rng = rng
        self._upgrades = 0

    def run(self, kind: Kind) -> Round:
        """One round; takes some seconds, most of a minute for the whole of Ray.

        Raises:
            LoadError: the service does not get well again, or does not tell what is to be checked.
        """
        ledger, begun_s = self._callers.ledger, time.monotonic()
        acknowledged, failed = len(ledger.acknowledged), ledger.failures()
        with self._callers.hurried():
            time.sleep(self._rng.uniform(*HURRY_S))
            hit_s = time.monotonic()
            gone = self._begin(kind)
        if kind is Kind.RAY:
            self._subject.start_again()
        self._wait_well(gone)
        well_s = time.monotonic() - hit_s
        self.check(whole=kind is Kind.RAY)
        return Round(
            kind=kind,
            well_s=well_s,
            total_s=time.monotonic() - begun_s,
            acknowledged=len(ledger.acknowledged) - acknowledged,
            failed=dict(ledger.failures() - failed),
        )

    def check(self, *, whole: bool) -> None:
        """Check what is new, or everything.

        Raises:
            LoadError: the service does not tell.
        """
        with self._callers.held():
            check = self._checks.check_all if whole else self._checks.check_new
            check(self._service.ingress_urls())

    def _begin(self, kind: Kind) -> Gone:
        if kind is Kind.UPGRADE:
            return self._upgrade()
        if kind is Kind.STORE:
            return self._kill_store()
        if kind is Kind.RAY:
            self._service.kill_ray()
            return Gone()
        return self._kill_replica(DEPLOYMENTS[kind])

    def _kill_replica(self, deployment: str) -> Gone:
        replicas = self._service.application().replicas
        victims = [(each.id, each.pid) for each in replicas if each.deployment == deployment and each.pid]
        if not victims:
            raise LoadError(f"no {deployment} replica runs, though nobody killed one")
        victim, pid = self._rng.choice(victims)
        psutil.Process(pid).kill()
        return Gone(replicas=frozenset({victim}))

    def _kill_store(self) -> Gone:
        store = self._service.store("feedback")
        if store is None:
            raise LoadError("the log's store does not run, though nobody killed it")
        store.kill()
        return Gone(store_pid=store.pid)

    def _upgrade(self) -> Gone:
        """Deploy the same with one setting changed, so that every deployment gets new replicas."""
        self._upgrades += 1
        before = frozenset(each.id for each in self._service.application().replicas)
        self._service.deploy(upgraded(self._subject.config, self._upgrades))
        return Gone(replicas=before)

    def _wait_well(self, gone: Gone) -> None:
        """Wait until every part is well again and feedback is acknowledged."""
        end_s = time.monotonic() + WELL_S
        while not self._is_well(gone):
            _pause_until(end_s)
        before = len(self._callers.ledger.acknowledged)
        while len(self._callers.ledger.acknowledged) == before:
            _pause_until(end_s)

    def _is_well(self, gone: Gone) -> bool:
        with suppress(OSError, ValueError, KeyError, psutil.Error):  # what tells of it may be away too
            found = self._service.application()
            if not found.settled or gone.replicas & {each.id for each in found.replicas}:
                return False  # looking through every process would take from those that start
            store, ingresses = self._service.store("feedback"), self._service.ingress_urls()
            return (
                store is not None
                and store.pid != gone.store_pid
                and len(ingresses) == found.wanted["Ingress"]
                and all(_is_ok(url) for url in (self._service.url, *ingresses))
            )
        return False


def _pause_until(end_s: float) -> None:
    if time.monotonic() > end_s:
        raise LoadError(f"the service is not well again after {WELL_S:g} s")
    time.sleep(POLL_S)


def _is_ok(url: str) -> bool:
    answer = call(f"{url}/health/ready")
    return answer.status == OK and answer.json()["status"] == "ok"


def upgraded(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The same configuration with a setting of no weight that no other number gives it."""
    changed = copy.deepcopy(dict(config))
    for application in changed["applications"]:
        application["args"] = (application.get("args") or {}) | {"cache_ttl": CACHE_TTL_S + number}
    return changed


def run_plan(plan: Plan, kinds: Sequence[Kind], subject: Subject, tell: Tell) -> Found:
    """Do these rounds and check everything once more; blocks until it is over. A service that stays unwell ends it.

    Raises:
        LoadError: nobody answers even before the first.
        KeyboardInterrupt: as it says.
    """
    begun_s, done = time.monotonic(), list[Round]()
    url, rng = subject.service.url, Random(f"{plan.seed} faults")  # noqa: S311 — no secret
    callers = Callers(url, intents_of(url), count=plan.callers, seed=plan.seed, again=plan.again)
    checks = Checks(url, callers.ledger, rng)
    rounds = Rounds(subject, callers, checks, rng)
    broken = ""
    try:
        with callers:
            for kind in kinds:
                done.append(rounds.run(kind))
                tell(f"{len(done)} of {len(kinds)}: {_told(done[-1])}; {summary(callers.ledger, checks.findings)}")
        rounds.check(whole=True)
    except (LoadError, OSError, psutil.Error) as error:  # an hour's figures are not lost for it
        broken = f"in round {len(done) + 1} of {len(kinds)}: {error}"
    return Found(
        command=command(),
        stamp=stamp(),
        plan=plan,
        rounds=done,
        findings=checks.findings,
        told=Told.of(callers.ledger),
        seconds=time.monotonic() - begun_s,
        broken=broken,
    )


def intents_of(url: str) -> list[str]:
    """The intents that the service knows.

    Raises:
        LoadError: it does not tell.
    """
    return [each["name"] for each in fetched(f"{url}{API}/types")["intents"]]


def _told(done: Round) -> str:
    return (
        f"{done.kind}, well again after {done.well_s:.1f} s, {done.acknowledged} acknowledged, "
        f"{sum(done.failed.values())} tries failed, {done.total_s:.1f} s in all"
    )


def summary(ledger: Ledger, findings: Findings) -> str:
    """How it stands, in a few words."""
    wrong = {
        "lost": len(findings.lost),
        "doubled": len(findings.doubled),
        "miscounted": findings.miscounted,
        "not served": len(findings.unserved),
        "odd answers": ledger.odd,
    }
    found = ", ".join(f"{count} {what}" for what, count in wrong.items() if count) or "all is well"
    return f"{len(ledger.acknowledged):,} so far, {found}"


def outcomes(found: Found) -> Iterator[Outcome]:
    """What is promised, and whether it was kept."""
    told, findings = found.told, found.findings
    yield Outcome(not found.broken, None, found.broken or "well again after each round")
    yield _none(
        len(findings.lost),
        f"of {told.acknowledged:,} acknowledged ({told.retried:,} after retries), {findings.found:,} found in the log "
        f"as they were sent, {len(findings.lost):,} lost",
    )
    yield _none(len(findings.doubled), f"{len(findings.doubled):,} texts in the log twice")
    yield _none(
        findings.miscounted, f"counters other than a recount after {findings.miscounted} of {findings.recounts}"
    )
    yield _none(
        len(findings.unserved),
        f"{findings.corrections:,} corrections asked of every ingress replica, {len(findings.unserved):,} not served",
    )
    yield _none(
        told.odd,
        f"{told.sent_again:,} sent again once acknowledged, {told.duplicates:,} answered as duplicates; "
        f"{told.odd:,} answers that nobody may get{_examples(told.oddities)}",
    )
    yield from _of_upgrades([each for each in found.rounds if each.kind is Kind.UPGRADE])


def _of_upgrades(upgrades: Sequence[Round]) -> Iterator[Outcome]:
    failed = Counter[str]()
    for each in upgrades:
        failed.update(each.failed)
    if upgrades:
        what = ", ".join(f"{count} {what}" for what, count in failed.items()) or "none"
        yield _none(failed.total(), f"requests that failed during {len(upgrades)} upgrades: {what}")


def _none(count: int, text: str) -> Outcome:
    return Outcome(held=not count, measured=count, text=text)


def _examples(oddities: Sequence[str]) -> str:
    return f", such as {oddities[0]}" if oddities else ""


HEAD = ("round", "rounds", "acknowledged", "tries failed", "well again, s, p50", "max", "round, s, p50")


def rows(found: Found) -> Iterator[tuple[str, ...]]:
    """The table, a row for each kind of round that there was, under `HEAD`."""
    for kind in Kind:
        if rounds := [each for each in found.rounds if each.kind is kind]:
            well_s = [each.well_s for each in rounds]
            yield (
                kind,
                f"{len(rounds):,}",
                f"{sum(each.acknowledged for each in rounds):,}",
                f"{sum(sum(each.failed.values()) for each in rounds):,}",
                f"{median(well_s):.1f}",
                f"{max(well_s):.1f}",
                f"{median(each.total_s for each in rounds):.1f}",
            )


def render(found: Found, console: Console) -> None:
    """Print the rounds and what they are held against."""
    print_table(console, HEAD, rows(found))
    print_line(console, _length(found))
    for outcome in outcomes(found):
        print_line(console, outcome.line, "green" if outcome.held else "bold red")


def markdown(found: Found) -> str:
    """The same for a README."""
    heading = (
        f"{found.stamp}; one model replica, {found.plan.callers} callers; service, store and callers share it. "
        f"`{found.command}`: {_length(found)}"
    )
    lines = (f"- {outcome.line}" for outcome in outcomes(found))
    return "\n".join([heading, "", table(HEAD, rows(found)), "", *lines])


def _length(found: Found) -> str:
    unconfirmed = f", {found.told.unconfirmed} records unconfirmed at the end" if found.told.unconfirmed else ""
    return f"{len(found.rounds)} rounds in {found.seconds:,.0f} s{unconfirmed}"


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.feedback_faults",
        "python -m loadgen.feedback_faults --readme README.md",
        "python -m loadgen.feedback_faults --rounds 10 --whole-ray 1 --upgrade 1 --seed 7",
    )
)
def main(
    rounds: Annotated[int, typer.Option(help="Rounds that kill something.")] = 300,
    whole_ray: Annotated[
        int | None, typer.Option(help=f"How many of them kill all of Ray; one in {EVERY} when absent.")
    ] = None,
    upgrade: Annotated[int, typer.Option(help="Rounds beside them that upgrade the application.")] = 5,
    callers: Annotated[int, typer.Option(help="How many send at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the order of rounds, of what is killed and of what is sent.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Kill parts of the service under feedback and see whether a record is lost or doubled; most of an hour."""
    with clear_errors(), interrupted_by_any_signal():
        check_keeping(out, readme, MARK)
        ray = rounds // EVERY if whole_ray is None else whole_ray
        plan: Plan = built(Plan, rounds=rounds, whole_ray=ray, upgrades=upgrade, callers=callers, seed=seed)
        result = _run_here(plan)
        keep(result, out, readme, MARK, markdown(result))
        render(result, Console())
    sys.exit(0 if all(outcome.held for outcome in outcomes(result)) else NOT_BELIEVED)


def _run_here(plan: Plan) -> Found:
    """Run the plan against a service that is started for it."""
    config = one_model_replica(shipped_config())
    _tell("starting the service with one model replica")
    with LocalService(config=config) as service:
        _tell(f"it answers after {service.started_in_s:.1f} s")
        return run_plan(plan, order(plan), Subject(service, config, service.start_again), _tell)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    run_app(app, "python -m loadgen.feedback_faults")
