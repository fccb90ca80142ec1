"""Stand-ins of a few lines for what the service asks of the rest of the graph."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployments.core.artifact import Artifact, EncoderSpec, Intent, Technique, WeightsSpec
from deployments.core.corrections import Correction
from deployments.core.errors import IntentGraphError
from deployments.core.feedback_counts import Agreement, LogStats, Tally
from deployments.core.feedback_log import Receipt, Submission
from deployments.core.feedback_patterns import Contest
from deployments.core.feedback_reader import Page, StoredRecord
from deployments.core.log_layout import DAY_S
from deployments.core.metrics import Metric
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction

LEVELS = ("simple", "moderate", "complex")
TECHNIQUES = ("zero_shot", "few_shot", "chain_of_thought")


def artifact(version: str = "v1") -> Artifact:
    """An artifact with two intents."""
    return Artifact(
        folder=Path(),
        version=version,
        encoder=EncoderSpec("none", "0" * 64),
        weights=WeightsSpec("0" * 64, 1, 1.0),
        intents=tuple(
            Intent(
                name,
                f"About {name}.",
                {level: (technique,) for level, technique in zip(LEVELS, TECHNIQUES, strict=True)},
                dict.fromkeys(LEVELS, "It helps."),
            )
            for name in ("reasoning", "translation")
        ),
        complexity_levels=LEVELS,
        techniques=tuple(Technique(name, "It helps.", "Somebody 2020") for name in TECHNIQUES),
        normalisation=("collapse_whitespace", "lowercase_ascii"),
        max_tokens=256,
        truncation="head_tail",
        temperature=1.0,
        abstain_below=None,
        training={},
        scores={},
    )


def prediction(text: str = "", intent: str = "reasoning") -> Prediction:
    """What a model would say."""
    scores = {"reasoning": 0.25, "translation": 0.25} | {intent: 0.75}
    return Prediction(intent, 0.75, "simple", ("zero_shot",), scores, len(text), False, "v1")


class FakeParts:
    """A graph in memory; `outcomes` overrides the model's answer for a text."""

    def __init__(self) -> None:
        self.kept: dict[str, Prediction] = {}
        self.waiting: dict[str, Prediction] = {}
        self.corrections: dict[str, Correction] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.purge_error: IntentGraphError | None = None
        self.keep_error: IntentGraphError | None = None
        self.looked_up = 0
        self.predicted: list[str] = []

    async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
        self.looked_up += 1
        return [self.kept.get(key) for key in keys]

    def unwritten(self, key: str) -> Prediction | None:
        return self.waiting.get(key)

    def keep(self, predictions: Mapping[str, Prediction]) -> None:
        self.kept |= predictions

    async def keep_now(self, predictions: Mapping[str, Prediction]) -> None:
        if self.keep_error:
            raise self.keep_error
        self.kept |= predictions

    async def purge(self, keys: Sequence[str]) -> int:
        return sum(self._gone(key) for key in keys)

    async def purge_all(self) -> int:
        return sum(self._gone(key) for key in list(self.kept))

    def _gone(self, key: str) -> bool:
        if self.purge_error:
            raise self.purge_error
        return self.kept.pop(key, None) is not None

    async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
        self.predicted += texts
        return [self.outcomes.get(text, prediction(text)) for text in texts]

    def correction(self, text_key: str) -> Correction | None:
        return self.corrections.get(text_key)


class FakeLog:
    """A feedback log that gives `receipt` for every record, and says of everything else who asked for it."""

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.receipt: Receipt | IntentGraphError = Receipt("1-0", duplicate=False, state="applied")
        self.counts = LogStats(Agreement(0, 0), [], {}, 0)
        self.tallies: list[Tally] = []
        self.contests: list[tuple[Contest, str]] = []
        self.records: list[StoredRecord] = []
        self.asked: list[tuple[object, ...]] = []
        self.error: IntentGraphError | None = None

    async def append(self, submission: Submission) -> Receipt | IntentGraphError:
        self.submissions.append(submission)
        return self.receipt

    async def stats(self) -> LogStats:
        return self.counts

    async def page(self, after: str, limit: int, state: str | None) -> Page:
        self._note("page", after, limit, state)
        return Page(self.records, None)

    async def review(self, feedback_id: str, verdict: str, by: str) -> None:
        self._note("review", feedback_id, verdict, by)

    async def delete(self, feedback_id: str, by: str) -> None:
        self._note("delete", feedback_id, by)

    async def erase(self, user_id: str, by: str) -> int:
        self._note("erase", user_id, by)
        return 3

    async def acknowledge(self, feedback_id: str) -> None:
        self._note("acknowledge", feedback_id)

    async def patterns(self, limit: int) -> tuple[list[Tally], list[tuple[Contest, str]], float]:
        return self.tallies, self.contests[:limit], 20_000 * DAY_S + 5.0

    def _note(self, *call: object) -> None:
        self.asked.append(call)
        if self.error:
            raise self.error


class CountingMetrics:
    """Sums and counts what was recorded, by metric name and labels, and keeps the latest value."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.latest: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        assert set(labels) == set(metric.labels)
        key = metric.name, tuple(sorted(labels.items()))
        self.totals[key] = self.totals.get(key, 0.0) + value
        self.latest[key] = value
        self.counts[key] += 1

    def observations(self, metric: Metric, **labels: str) -> int:
        return self.counts[metric.name, tuple(sorted(labels.items()))]

    def total(self, metric: Metric, **labels: str) -> float:
        return self.totals.get((metric.name, tuple(sorted(labels.items()))), 0.0)

    def last(self, metric: Metric, **labels: str) -> float:
        return self.latest[metric.name, tuple(sorted(labels.items()))]
