"""What a text's length alone tells of its complexity: the mark that a complexity head has to beat."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

MAX_STEPS: Final = 8
MIN_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class LengthBaseline:
    """A level for each range of lengths: `level[n]` up to `up_to[n]` characters, the last one beyond."""

    up_to: tuple[float, ...]
    level: tuple[str, ...]

    @classmethod
    def fit(cls, texts: Sequence[str], levels: Sequence[str]) -> Self:
        """Cut where a decision tree over the number of characters cuts, into at most `MAX_STEPS` ranges."""
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(max_leaf_nodes=MAX_STEPS, min_samples_leaf=MIN_SHARE, random_state=0)
        tree.fit([[len(text)] for text in texts], levels)
        cuts = sorted(
            float(cut) for cut, feature in zip(tree.tree_.threshold, tree.tree_.feature, strict=True) if feature == 0
        )
        return cls(tuple(cuts), tuple(str(level) for level in tree.predict([[cut] for cut in (*cuts, float("1e9"))])))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `stored()` gave."""
        return cls(tuple(stored["up_to"]), tuple(stored["level"]))

    def stored(self) -> dict[str, Any]:
        """Give it as `model.yaml` keeps it."""
        return {"up_to": list(self.up_to), "level": list(self.level)}

    def levels(self, texts: Sequence[str]) -> list[str]:
        """Guess each text's level, order kept."""
        return [self.level[bisect_left(self.up_to, len(text))] for text in texts]
