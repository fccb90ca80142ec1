"""From rows and what an artifact said of them to scores. No torch.

Accuracy, F1, confusion and calibration are of the model's best intent on the rows that have one of its intents, whether
or not it would have abstained (the in-scope accuracy of Larson et al. 2019); what abstaining does is in `out_of_scope`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support, roc_auc_score

from deployments.core.artifact import Artifact
from deployments.core.prediction import Prediction
from deployments.training.calibration import Bin, calibration_error, reliability
from deployments.training.length_baseline import LengthBaseline
from deployments.training.rows import Row

CONFIDENCE_LEVEL: Final = 0.95
WORST: Final = 20
DECIMALS: Final = 4


@dataclass(frozen=True, slots=True)
class IntentScore:
    """One intent: how many rows have it, and how well they are found."""

    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class SourceScore:
    """One source: accuracy on its rows, the 95 % interval of that, and the accuracy on all other rows."""

    rows: int
    accuracy: float
    interval: tuple[float, float]
    accuracy_of_the_rest: float | None


@dataclass(frozen=True, slots=True)
class ComplexityScore:
    """Complexity over the rows that have a level, and what the text's length alone would have told."""

    rows: int
    accuracy: float
    macro_f1: float
    length_baseline: float | None


@dataclass(frozen=True, slots=True)
class OutOfScopeScore:
    """Rows that ask for none of the intents, told from the others by low confidence.

    `rejected` is the share of them answered `out_of_scope`, `kept` the share of the in-scope rows that are not; both
    are None for an artifact that never abstains. `auroc` needs no threshold.
    """

    rows: int
    auroc: float
    abstain_below: float | None
    rejected: float | None
    kept: float | None


@dataclass(frozen=True, slots=True)
class Mistake:
    """A row whose best intent is wrong."""

    place: str
    text: str
    intent: str
    said: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of an artifact, each 0..1.

    `interval` is Wilson's 95 % interval of `accuracy`; `confusion[i][j]` counts rows of `intents[i]` taken for
    `intents[j]`; `mistakes` come with the surest first.
    """

    model_version: str
    rows: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    ece: float
    by_intent: dict[str, IntentScore]
    by_source: dict[str, SourceScore]
    complexity: ComplexityScore | None
    out_of_scope: OutOfScopeScore | None
    intents: tuple[str, ...]
    confusion: list[list[int]]
    reliability: list[Bin]
    mistakes: list[Mistake]

    def summary(self) -> dict[str, Any]:
        """What `model.yaml` keeps of it."""
        return {
            "rows": self.rows,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "recall": {name: score.recall for name, score in self.by_intent.items()},
            "complexity": asdict(self.complexity) if self.complexity else None,
            "out_of_scope": asdict(self.out_of_scope) if self.out_of_scope else None,
        }


def score(rows: Sequence[Row], predictions: Sequence[Prediction], artifact: Artifact, out_of_scope: str) -> Report:
    """Compare predictions with the rows' labels; at least one row has another intent than `out_of_scope`."""
    pairs = list(zip(rows, predictions, strict=True))
    known = [(row, said) for row, said in pairs if row.intent != out_of_scope]
    unknown = [said for row, said in pairs if row.intent == out_of_scope]
    meant, best = [row.intent for row, _ in known], [best_intent(said) for _, said in known]
    right = [is_right(row, said) for row, said in known]
    confidences = [said.confidence for _, said in known]
    return Report(
        model_version=artifact.version,
        rows=len(known),
        accuracy=_share(right),
        interval=interval(right),
        macro_f1=_rounded(f1_score(meant, best, labels=sorted(set(meant)), average="macro", zero_division=0)),
        ece=_rounded(calibration_error(confidences, right)),
        by_intent=_by_intent(meant, best),
        by_source=_by_source([row.source for row, _ in known], right),
        complexity=_complexity(known, artifact),
        out_of_scope=_out_of_scope([said for _, said in known], unknown, artifact) if unknown else None,
        intents=artifact.intent_names,
        confusion=confusion_matrix(meant, best, labels=list(artifact.intent_names)).tolist(),
        reliability=reliability(confidences, right),
        mistakes=_mistakes(known),
    )


def best_intent(prediction: Prediction) -> str:
    """The most probable intent, whether or not it was given as the answer."""
    return max(prediction.scores, key=prediction.scores.__getitem__)


def is_right(row: Row, prediction: Prediction) -> bool:
    """Whether the best intent is the row's."""
    return best_intent(prediction) == row.intent


def interval(right: Sequence[bool]) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share (Wilson 1927), for at least one row."""
    found = binomtest(sum(right), len(right)).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return _rounded(found.low), _rounded(found.high)


def _by_intent(meant: Sequence[str], best: Sequence[str]) -> dict[str, IntentScore]:
    names = sorted(set(meant))
    columns = precision_recall_fscore_support(meant, best, labels=names, zero_division=0)
    return {
        name: IntentScore(int(rows), _rounded(precision), _rounded(recall), _rounded(f1))
        for name, precision, recall, f1, rows in zip(names, *columns, strict=True)
    }


def _by_source(sources: Sequence[str], right: Sequence[bool]) -> dict[str, SourceScore]:
    scores = {}
    for source in sorted(set(sources)):
        of_it = [hit for name, hit in zip(sources, right, strict=True) if name == source]
        rest = [hit for name, hit in zip(sources, right, strict=True) if name != source]
        scores[source] = SourceScore(len(of_it), _share(of_it), interval(of_it), _share(rest) if rest else None)
    return scores


def _complexity(known: Sequence[tuple[Row, Prediction]], artifact: Artifact) -> ComplexityScore | None:
    labelled = [(row, said.complexity) for row, said in known if row.complexity]
    if not labelled:
        return None
    meant, said = [str(row.complexity) for row, _ in labelled], [level for _, level in labelled]
    cuts = artifact.training.get("length_baseline")
    by_length = LengthBaseline.of(cuts).levels([row.text for row, _ in labelled]) if cuts else None
    return ComplexityScore(
        rows=len(labelled),
        accuracy=_rounded(accuracy_score(meant, said)),
        macro_f1=_rounded(f1_score(meant, said, labels=sorted(set(meant)), average="macro", zero_division=0)),
        length_baseline=_rounded(accuracy_score(meant, by_length)) if by_length else None,
    )


def _out_of_scope(known: Sequence[Prediction], unknown: Sequence[Prediction], artifact: Artifact) -> OutOfScopeScore:
    confidences = np.array([said.confidence for said in (*known, *unknown)])
    in_scope = np.arange(len(confidences)) < len(known)
    threshold = artifact.abstain_below
    kept = None if threshold is None else confidences >= threshold
    return OutOfScopeScore(
        rows=len(unknown),
        auroc=_rounded(roc_auc_score(in_scope, confidences)),
        abstain_below=threshold,
        rejected=None if kept is None else _share(~kept[~in_scope]),
        kept=None if kept is None else _share(kept[in_scope]),
    )


def _mistakes(known: Sequence[tuple[Row, Prediction]]) -> list[Mistake]:
    wrong = [
        Mistake(row.place, row.text, row.intent, best_intent(said), said.confidence)
        for row, said in known
        if not is_right(row, said)
    ]
    return sorted(wrong, key=lambda mistake: -mistake.confidence)


def most_confused(report: Report, count: int = WORST) -> list[tuple[str, str, int]]:
    """The pairs most often taken for one another, as (meant, said, rows)."""
    pairs = Counter(
        {
            (meant, said): report.confusion[i][j]
            for i, meant in enumerate(report.intents)
            for j, said in enumerate(report.intents)
            if i != j and report.confusion[i][j]
        }
    )
    return [(meant, said, rows) for (meant, said), rows in pairs.most_common(count)]


def _share(hits: Any) -> float:
    return _rounded(np.mean(hits))


def _rounded(value: Any) -> float:
    return round(float(value), DECIMALS)
