"""A contest turns its order round, says honestly who is better by how much, and leaves nothing behind."""

import ast
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from starlette.testclient import TestClient

from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from deployments.core.text import normalise
from loadgen.load import LoadError
from loadgen.peers import answers, cli, contest, environment, processes, tables
from loadgen.peers.contestants import OWN, Contestant, Stage, Tuning, contestants
from loadgen.peers.results import Contest, Figures, Spread, Task, ratio
from loadgen.peers.servers.fastapi_service import PATH, TTL_S, Lru, build_app
from loadgen.peers.servers.keys import key_of
from loadgen.report import Machine, Report
from tests.unit.reports import report

PEERS = Path(processes.__file__).parent
HITS, UNIQUE, HITS_ONE, UNIQUE_ONE = contest.tasks(32)
rates = st.floats(min_value=0.5, max_value=1e5)


def figures(task: Task, contestant: str, repeat: int, rate: float, p50_ms: float, **changes: Any) -> Figures:
    found = {"answers": 100, "p95_ms": 2 * p50_ms, "p99_ms": 3 * p50_ms, "error_rate": 0.0, "hit_rate": 1.0}
    stamp = {"task": task.name, "contestant": contestant, "repeat": repeat, "answered_per_s": rate, "p50_ms": p50_ms}
    return Figures.model_validate(stamp | found | {"doubts": []} | changes)


def held(*found: Figures, ended: str = "complete") -> Contest:
    return Contest(
        started_at="2026-07-30T12:00:00+00:00",
        command="python -m loadgen.peers",
        machine=Machine(processor="EPYC", cores=2, memory_gib=7.8, system="Linux 6.1", load_average_before=0.4),
        versions={"ray": "2.60.0"},
        peer_versions={"litserve": "0.2.19"},
        commit="67f9a9a7f1",
        settings={"repeats": 3},
        contestants={OWN: "this service as shipped", "fastapi": "FastAPI and Redis", "naive": "first written"},
        tasks=[HITS, HITS_ONE],
        reference=OWN,
        figures=list(found),
        ended=ended,
    )


WORKED = held(
    *(figures(HITS, OWN, repeat, rate, 10) for repeat, rate in enumerate((3000, 2000, 2500), 1)),
    *(figures(HITS, "fastapi", repeat, rate, 12) for repeat, rate in enumerate((1000, 2000, 1250), 1)),
    *(figures(HITS_ONE, OWN, repeat, 900, p50_ms) for repeat, p50_ms in enumerate((1.0, 2.0, 1.5), 1)),
    *(figures(HITS_ONE, "fastapi", repeat, 990, p50_ms) for repeat, p50_ms in enumerate((0.5, 0.8, 0.75), 1)),
)


def rendered(found: Contest) -> str:
    console = Console(width=200, file=StringIO())
    tables.render(found, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


class TestOrder:
    def test_turns_round_in_every_repeat(self):
        order = [f"{repeat}{item}" for repeat, item in contest.order("ABC", 3)]

        assert " ".join(order) == "1A 1B 1C 2C 2B 2A 3A 3B 3C"

    @given(st.lists(st.integers(), unique=True, min_size=1), st.integers(1, 6))
    def test_gives_everyone_every_place_but_the_middle_equally_often(self, items: list[int], pairs: int):
        """Over an even number of repeats the places of each add up to the same."""
        places = dict.fromkeys(items, 0)
        for place, (_, item) in enumerate(contest.order(items, 2 * pairs)):
            places[item] += place % len(items)

        assert set(places.values()) == {pairs * (len(items) - 1)}


class TestRatio:
    def test_of_many_connections_is_of_answers_a_second(self):
        """Medians 2500 and 1250; the repeats 3, 1 and 2."""
        _, fastapi = WORKED.standings(HITS)

        assert fastapi.ratio == Spread(median=2, low=1, high=3)
        assert fastapi.answered_per_s == Spread(median=1250, low=1000, high=2000)

    def test_of_one_connection_is_of_the_median_latency_and_still_says_how_much_better_we_are(self):
        """Medians 1.5 and 0.75 ms, so half as good; the repeats 0.5, 0.4 and 0.5."""
        _, fastapi = WORKED.standings(HITS_ONE)

        assert fastapi.ratio == Spread(median=0.5, low=0.4, high=0.5)

    def test_of_this_service_is_one(self):
        own, _ = WORKED.standings(HITS)

        assert own.ratio == Spread(median=1, low=1, high=1)

    def test_counts_only_the_repeats_that_have_both(self):
        ours = {1: figures(HITS, OWN, 1, 100, 1), 2: figures(HITS, OWN, 2, 900, 1)}
        theirs = {1: figures(HITS, "x", 1, 50, 1), 3: figures(HITS, "x", 3, 1, 1)}

        assert ratio(HITS, ours, theirs) == Spread(median=2, low=2, high=2)
        assert ratio(HITS, ours, {3: theirs[3]}) is None

    @given(st.lists(st.tuples(rates, rates), min_size=1, max_size=7), st.sampled_from([HITS, HITS_ONE]))
    def test_lies_within_its_range_and_turns_over_with_the_sides(self, pairs: list[tuple[float, float]], task: Task):
        ours, theirs = (
            {repeat: figures(task, "x", repeat, pair[side], 1e3 / pair[side]) for repeat, pair in enumerate(pairs)}
            for side in (0, 1)
        )

        better, worse = ratio(task, ours, theirs), ratio(task, theirs, ours)

        assert better is not None
        assert worse is not None
        assert better.low * (1 - 1e-9) <= better.median <= better.high * (1 + 1e-9)
        assert better.median * worse.median == pytest.approx(1)
        assert better.low == pytest.approx(min(mine / other for mine, other in pairs))

    @given(st.lists(rates, min_size=1))
    def test_spread_has_the_median_and_the_ends(self, values: list[float]):
        assert Spread.of(values) == Spread(median=median(values), low=min(values), high=max(values))


class TestStandings:
    def test_leave_out_who_was_not_measured(self):
        assert [each.contestant for each in WORKED.standings(HITS)] == [OWN, "fastapi"]

    def test_have_no_ratio_without_this_service(self):
        (alone,) = held(figures(HITS, "naive", 1, 9, 3000)).standings(HITS)

        assert alone.ratio is None

    def test_are_written_beside_the_figures(self, tmp_path: Path):
        WORKED.write(tmp_path / "peers.json")

        document = json.loads((tmp_path / "peers.json").read_text())
        assert len(document["figures"]) == 12
        assert [(each["task"], each["contestant"], each["ratio"]["median"]) for each in document["standings"]] == [
            ("hits", OWN, 1.0), ("hits", "fastapi", 2.0), ("hits-one", OWN, 1.0), ("hits-one", "fastapi", 0.5),
        ]  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]

    def test_are_complete_only_when_nothing_speaks_against_a_figure(self):
        assert WORKED.complete
        assert not held(ended="interrupted").complete
        assert not held(figures(HITS, OWN, 1, 9, 9, doubts=["2 % failed"])).complete


class TestTables:
    def test_markdown_has_a_row_for_each_with_medians_ranges_and_ratios(self):
        text = tables.markdown(WORKED)

        head = "| | answers/s | p50, ms | p99, ms | ratio of answers/s, over 1: intentgraph is better |"
        assert f"{head}\n|---|--:|--:|--:|--:|\n" in text
        fastapi = "| fastapi (FastAPI and Redis) |"
        assert f"{fastapi} 1,250 (1,000 to 2,000) | 12.0 | 36.0 | 2.00× (1.00× to 3.00×) |" in text
        assert f"{fastapi} 990 | 0.750 (0.500 to 0.800) | 2.25 (1.50 to 2.40) | 0.50× (0.40× to 0.50×) |" in text
        assert "naive" not in text

    def test_markdown_says_on_what_and_how_it_was_run(self):
        text = tables.markdown(WORKED)

        facts = ("`python -m loadgen.peers`", "2026-07-30T12:00:00", "EPYC, 2 cores", "67f9a9a7f1", "litserve 0.2.19")
        assert all(fact in text for fact in facts)

    def test_the_terminal_shows_the_same_figures(self):
        shown = rendered(WORKED)

        assert "1,250 (1,000 to 2,000)" in shown
        assert "2.00× (1.00× to 3.00×)" in shown

    @pytest.mark.parametrize("shown", [tables.markdown, rendered])
    def test_an_early_end_and_doubts_are_told(self, shown: Callable[[Contest], str]):
        text = shown(held(figures(HITS, OWN, 1, 9, 9, doubts=["hit rate 0.91"]), ended="bentoml: it did not answer"))

        assert "bentoml: it did not answer" in text
        assert "intentgraph, hits: hit rate 0.91" in text

    @pytest.mark.parametrize(
        ("value", "shown"), [(4213.4, "4,213×"), (99.96, "100.0×"), (12.34, "12.3×"), (0.8765, "0.88×")]
    )
    def test_ratios_have_the_digits_that_repeat(self, value: float, shown: str):
        assert tables.times(value) == shown


class TestEnvironment:
    def test_pins_every_requirement_to_one_version(self):
        found = environment.pins(environment.REQUIREMENTS.read_text())

        assert found["torch"] == "2.13.0"
        assert found["redis"] == "8.1.0"
        assert all(found.values())
        assert len(found) == 10

    def test_lies_elsewhere_for_other_versions_only(self, tmp_path: Path):
        where = environment.default_folder("a==1  # why\nb[x]==2\n", tmp_path)

        assert where.parent == tmp_path / "intentgraph"
        assert where == environment.default_folder("b==2\n# another reason\na==1", tmp_path)
        assert where != environment.default_folder("a==1\nb==3\n", tmp_path)

    def test_lacks_what_is_absent_or_of_another_version(self, tmp_path: Path):
        site = tmp_path / "lib" / "python3.11" / "site-packages"
        pins = environment.pins(environment.REQUIREMENTS.read_text())
        for name, version in pins.items():
            found = {"torch": "2.13.0+cpu", "litserve": "0.2.18"}.get(name, version)
            info = site / f"{name.replace('-', '_')}-{found}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {found}\n")

        assert environment.missing(tmp_path) == ["litserve==0.2.19"]
        assert environment.missing(tmp_path / "nowhere") == [f"{name}=={version}" for name, version in pins.items()]

    def test_a_command_that_fails_is_told_with_its_last_word(self, tmp_path: Path):
        program = "print('Collecting x'); raise SystemExit('no such package')"
        told: list[str] = []

        with pytest.raises(LoadError, match="no such package"):
            environment._run([sys.executable, "-c", program], tmp_path / "log", told.append)

        assert told == ["  Collecting x"]
        assert "no such package" in (tmp_path / "log").read_text()


class Store:
    """A store in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[bytes, float | None]] = {}
        self.asked = 0

    async def get(self, key: str) -> bytes | None:
        self.asked += 1
        return self.kept.get(key, (None, None))[0]

    async def set(self, key: str, value: bytes, *, ex: int) -> None:
        self.kept[key] = (value, ex)


def classify(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"intent": f"é {text}"} for text in texts]


def refuse(texts: Sequence[str]) -> list[object]:
    raise AssertionError(f"{texts} went to the model")


class TestFastapiService:
    def test_a_hit_is_the_stored_bytes_as_they_are(self):
        store = Store()
        store.kept[key_of("hello")] = (b'{"intent" : "\xc3\xa9"}', None)

        answer = TestClient(build_app(store, refuse)).post(PATH, json={"text": " Hello "})

        assert (answer.status_code, answer.content) == (200, b'{"intent" : "\xc3\xa9"}')
        assert answer.headers["X-Cache"] == "hit-redis"
        assert answer.headers["Content-Type"] == "application/json"

    def test_a_miss_is_computed_and_kept_for_its_time(self):
        store = Store()
        client = TestClient(build_app(store, classify))

        miss, hit = (client.post(PATH, json={"text": "hello"}) for _ in range(2))

        assert (miss.headers["X-Cache"], hit.headers["X-Cache"]) == ("miss", "hit-redis")
        assert miss.content == hit.content == '{"intent":"é hello"}'.encode()
        assert store.kept == {key_of("hello"): (miss.content, TTL_S)}

    def test_with_an_lru_the_store_is_asked_once(self):
        store = Store()
        client = TestClient(build_app(store, classify, lru_size=1))

        states = [client.post(PATH, json={"text": text}).headers["X-Cache"] for text in "aabaa"]

        assert states == ["miss", "hit-local", "miss", "hit-redis", "hit-local"]
        assert store.asked == 3

    @pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": "x" * 5001}, {"text": 1}])
    def test_a_body_that_is_none_is_refused(self, body: dict[str, Any]):
        assert TestClient(build_app(Store(), refuse)).post(PATH, json=body).status_code == 422

    @given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef"))))
    def test_the_lru_keeps_the_last_used(self, size: int, steps: list[tuple[bool, str]]):
        lru, model = Lru(size), OrderedDict[str, bytes]()
        for puts, key in steps:
            if puts:
                lru.put(key, key.encode())
                model.pop(key, None)
                model[key] = key.encode()
                model = OrderedDict(list(model.items())[-size:])
            else:
                expected = model.get(key)
                if expected is not None:
                    model.move_to_end(key)
                assert lru.get(key) == expected

    @pytest.mark.parametrize("use", [lambda lru: lru.get("a"), lambda lru: lru.put("a", b"a")])
    def test_what_the_lru_was_asked_for_or_given_again_stays(self, use: Callable[[Lru], object]):
        lru = Lru(2)
        lru.put("a", b"a")
        lru.put("b", b"b")

        use(lru)
        lru.put("c", b"c")

        assert (lru.get("a"), lru.get("b"), lru.get("c")) == (b"a", None, b"c")

    def test_an_lru_of_nothing_keeps_nothing(self):
        lru = Lru(0)
        lru.put("a", b"1")

        assert lru.get("a") is None

    @given(st.text())
    def test_keys_tell_apart_what_this_service_tells_apart(self, text: str):
        steps = Artifact.load(DEFAULT_ARTIFACT).normalisation

        with contextlib.suppress(UnicodeEncodeError):
            assert key_of(text) == hashlib.sha256(normalise(text, steps).encode()).hexdigest()


class TestAnswers:
    def test_other_bytes_are_refused_and_named(self):
        with pytest.raises(LoadError, match=r"'b'.*intent.*other work"):
            answers.compare({"a": b"1", "b": b'{"intent": 1}'}, {"a": b"1", "b": b'{"intent":1}'}, byte_for_byte=True)

    def test_where_bytes_may_differ_values_may_not(self):
        answers.compare({"a": b'{"x": 1, "y": 2}'}, {"a": b'{"y":2,"x":1}'}, byte_for_byte=False)

        with pytest.raises(LoadError):
            answers.compare({"a": b'{"x": 2}'}, {"a": b'{"x":1}'}, byte_for_byte=False)


def plan(*chosen: Contestant, **changes: Any) -> contest.Plan:
    known = {"tasks": contest.tasks(32), "tuning": Tuning(), "venv": Path("/nowhere")}
    return contest.Plan(contestants=chosen, **{**known, **changes})


class TestPlan:
    def test_everybody_is_sent_the_same_kept_texts_and_other_new_ones(self):
        hits, unique = (plan().load(task, "http://127.0.0.1:1") for task in (HITS, UNIQUE))

        assert (hits.start, unique.start) == ("as-is", "fresh")
        assert (hits.traffic.distinct, hits.traffic.zipf_s, hits.traffic.lengths) == (1000, 0, "12:1")
        assert hits.freshened().traffic == hits.traffic
        assert unique.traffic.texts == "unique"
        assert {load.traffic.arrivals for load in (hits, unique)} == {"closed"}

    def test_one_connection_is_sent_by_one_process(self):
        assert [plan().load(task, "http://x").workers for task in (HITS, HITS_ONE)] == [2, 1]

    def test_one_connection_comes_before_many(self):
        own = contestants({})[OWN]

        assert plan().tasks_of(own) == [HITS_ONE, UNIQUE_ONE, HITS, UNIQUE]

    def test_who_keeps_no_answers_is_asked_new_texts_alone(self):
        assert plan().tasks_of(contestants({})["litserve"]) == [UNIQUE_ONE, UNIQUE]

    def test_only_those_with_a_cache_are_asked_for_hits(self):
        asked = {name: each.asked for name, each in contestants({}).items()}
        both = {OWN, "naive", "naive-100"}

        assert {name for name, texts in asked.items() if "hits" in texts} == both | {"fastapi", "fastapi-lru"}
        assert {name for name, texts in asked.items() if "unique" in texts} == both | {"litserve", "bentoml"}


class TestCommandLine:
    def test_this_service_is_always_there_and_first(self, tmp_path: Path):
        (tmp_path / "c.yaml").touch()

        def chosen(only: list[str], variants: list[str]) -> list[str]:
            return [each.name for each in cli._chosen_contestants(only, variants)]

        assert chosen(["naive", "fastapi"], []) == [OWN, "fastapi", "naive"]
        assert chosen(["naive"], [f"slow={tmp_path / 'c.yaml'}"]) == [OWN, f"{OWN}-slow", "naive"]
        assert chosen([], []) == list(contestants({}))

    @pytest.mark.parametrize(
        ("choose", "says"),
        [
            (lambda: cli._chosen_contestants(["triton"], []), "no contestant triton; there are intentgraph, fastapi"),
            (lambda: cli._chosen_tasks(["miss"], 32), "no task miss; there are hits, unique"),
            (lambda: cli._chosen_contestants([], ["slow"]), "--variant slow: give NAME=FILE"),
            (lambda: cli._chosen_contestants([], ["slow=/no/such.yaml"]), "give NAME=FILE"),
            (lambda: cli._check(plan(distinct=0)), "distinct is 0"),
            (lambda: cli._check(plan(), Path("/no/such/out.json")), "no folder /no/such to write out.json"),
        ],
    )
    def test_what_would_fail_is_refused_first(self, choose: Callable[[], object], says: str):
        with pytest.raises(ValueError, match=says):
            choose()

    def test_names_come_with_commas_or_again(self):
        assert cli._names(["a,b", "c"]) == ["a", "b", "c"]
        assert cli._names(None) == []


def answered(**series: list[float]) -> Report:
    return report([{name.replace("_", "-"): values for name, values in series.items()}], loop="closed")


class Hall:
    """Contestants that are up one at a time and tell who was when; `reports` are found for each in turn."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def contestant(self, name: str) -> Contestant:
        @contextlib.contextmanager
        def up(_stage: Stage) -> Iterator[str]:
            self.log.append(f"+{name}")
            try:
                yield f"http://{name}"
            finally:
                self.log.append(f"-{name}")

        return Contestant(name, "made up", frozenset({"unique"}), up, "own")

    def run(self, measure: contest.Measure, *, repeats: int = 2) -> tuple[str, list[Figures]]:
        found: list[Figures] = []
        chosen = plan(*(self.contestant(name) for name in "ab"), tasks=(UNIQUE,), repeats=repeats)
        stage = Stage(Path(), Path(), Path(sys.executable), Tuning())
        return contest._run_all(chosen, stage, found, self.log.append, measure), found


class TestRun:
    def test_one_is_up_at_a_time_and_each_is_measured_in_each_repeat(self):
        hall = Hall()

        ended, found = hall.run(lambda load: answered(miss=[10.0] * 9))

        assert ended == "complete"
        assert [line for line in hall.log if line[0] in "+-"] == ["+a", "-a", "+b", "-b", "+b", "-b", "+a", "-a"]
        assert [(each.contestant, each.repeat) for each in found] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
        assert found[0].answered_per_s == 9
        assert found[0].p50_ms == pytest.approx(10, rel=0.002)

    @pytest.mark.parametrize(
        ("failure", "ends"),
        [
            (KeyboardInterrupt(), "interrupted"),
            (LoadError("it did not answer"), "b, repeat 1 of 2: it did not answer"),
        ],
    )
    def test_an_early_end_stops_the_one_that_is_up_and_keeps_what_was_found(self, failure: BaseException, ends: str):
        hall = Hall()

        def measure(load: contest.Load) -> Report:
            if load.target == "http://b":
                raise failure
            return answered(miss=[1.0])

        ended, found = hall.run(measure)

        assert ended == ends
        assert hall.log[-1] == "-b"
        assert [each.contestant for each in found] == ["a"]

    def test_an_interrupted_measurement_is_an_interrupt_and_a_dead_server_a_failure(self):
        with pytest.raises(KeyboardInterrupt):
            contest._figures(HITS, OWN, 1, report(ended="interrupted"))
        with pytest.raises(LoadError, match="target died"):
            contest._figures(HITS, OWN, 1, report([{"miss": [1.0]}], ended="target died"))
        with pytest.raises(LoadError, match="0 calls"):
            contest._figures(HITS, OWN, 1, report())

    @pytest.mark.parametrize(
        ("series", "doubted"),
        [
            ({"hit_redis": [1.0] * 2000}, ""),
            ({"hit_redis": [1.0] * 90, "miss": [9.0] * 10}, "hit rate 90.0%"),
            ({"unknown": [1.0] * 90}, "hit rate unknown"),
            ({"hit_local": [1.0] * 90, "server_error": [9.0] * 10}, "10.00% of the calls failed"),
        ],
    )
    def test_hits_that_are_none_and_failures_are_doubts(self, series: dict[str, list[float]], doubted: str):
        found = contest._figures(HITS, OWN, 1, failing(series))

        assert bool(found.doubts) == bool(doubted)
        assert doubted in " ".join(found.doubts)

    def test_misses_are_no_doubt_where_texts_are_new(self):
        assert not contest._figures(UNIQUE, "litserve", 1, answered(unknown=[1.0] * 9)).doubts


def failing(series: dict[str, list[float]]) -> Report:
    names = {"hit_redis": "hit-redis", "hit_local": "hit-local"}
    return report([{names.get(name, name): values for name, values in series.items()}], loop="closed")


HIDES = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""


def started(tmp_path: Path, program: str, *, niceness: int = 0) -> processes.Server:
    return processes.Server(
        [sys.executable, "-c", program],
        environment=os.environ,
        folder=tmp_path,
        log=tmp_path / "log",
        niceness=niceness,
    )


class TestServer:
    def test_ends_with_everything_it_started_wherever_that_hides(self, tmp_path: Path):
        server = started(tmp_path, HIDES)
        server.wait_ready(lambda: "up" in (tmp_path / "log").read_text(), timeout_s=10)
        mine = processes.bearing(server._mark)
        sessions = {os.getsid(each.pid) for each in mine}

        server.stop()

        assert len(mine) == 2
        assert os.getsid(0) not in sessions  # Ctrl-C at the terminal is not for them
        assert not processes.bearing(server._mark)
        assert not any(each.is_running() for each in mine)

    def test_ends_with_the_contest_even_when_that_is_killed(self, tmp_path: Path):
        contest_program = (
            "import os, sys, time; from pathlib import Path; from loadgen.peers.processes import Server;"
            f"folder = Path({str(tmp_path)!r}); command = [sys.executable, '-c', 'import time; time.sleep(60)'];"
            "server = Server(command, environment=os.environ, folder=folder, log=folder / 'log');"
            "print(server._process.pid, flush=True); time.sleep(60)"
        )
        killed = subprocess.Popen([sys.executable, "-c", contest_program], stdout=subprocess.PIPE, text=True)
        assert killed.stdout
        server = psutil.Process(int(killed.stdout.readline()))
        while "leash" in " ".join(server.cmdline()):
            time.sleep(0.01)

        killed.kill()
        killed.communicate()

        psutil.wait_procs([server], timeout=5)
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE

    def test_runs_at_the_niceness_asked_for(self, tmp_path: Path):
        server = started(
            tmp_path, "import os, time; print('nice', os.nice(0), flush=True); time.sleep(60)", niceness=15
        )
        try:
            server.wait_ready(lambda: "nice" in (tmp_path / "log").read_text(), timeout_s=10)
        finally:
            server.stop()

        assert (tmp_path / "log").read_text().split()[1] == str(min(19, os.nice(0) + 15))

    @pytest.mark.parametrize(
        ("program", "says"),
        [
            ("print('port taken'); raise SystemExit(3)", "ended with 3: port taken"),
            ("import time; print('hm', flush=True); time.sleep(60)", "did not answer within 1 s: hm"),
        ],
    )
    def test_that_does_not_come_up_is_told_with_its_last_words_and_its_log(
        self, tmp_path: Path, program: str, says: str
    ):
        server = started(tmp_path, program)

        with pytest.raises(LoadError, match=says) as refused:
            server.wait_ready(lambda: False, timeout_s=1)
        server.stop()

        assert str(tmp_path / "log") in str(refused.value)

    def test_a_second_contest_is_refused(self, tmp_path: Path):
        with processes.alone(tmp_path) as folder:
            assert folder == tmp_path
            with pytest.raises(LoadError, match="another contest"):
                processes.alone(tmp_path).__enter__()

        with processes.alone(tmp_path):
            pass

    def test_an_impatient_user_leaves_nothing_half_stopped(self):
        with processes.unhurried():
            signal.raise_signal(signal.SIGINT)

        with processes.interrupted_by_any_signal(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_starts_as_it_comes_whatever_the_user_has_set(self):
        base = {
            "PATH": "/bin",
            "RAY_ADDRESS": "x",
            "REDIS_URL": "x",
            "CACHE_TTL": "1",
            "RAY_SERVE_X": "1",
            "HOME": "/h",
        }

        assert processes.plain_environment(base) == {"PATH": "/bin", "HOME": "/h"}


@pytest.mark.parametrize("program", [*PEERS.glob("*.py"), *PEERS.glob("servers/*.py")], ids=lambda path: path.name)
def test_nothing_of_this_service_is_imported_and_ray_by_the_naive_graph_alone(program: Path):
    nodes = ast.walk(ast.parse(program.read_text()))
    imported = {name.partition(".")[0] for node in nodes for name in _imported(node)}

    assert "deployments" not in imported
    assert ("ray" in imported) == (program.name == "naive_graph.py")
    if program.parent.name == "servers":
        assert "loadgen" not in imported


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
