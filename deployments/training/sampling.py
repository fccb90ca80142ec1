"""Which rows are validated on, and which are drawn for each batch. No torch."""

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from deployments.training.rows import Row

# How far the draw leans from "as many as there are" (1) towards "each the same" (0), over intents and over the sources
# of an intent. At 1/4 a source of 340 rows is drawn 1.4 times as often as one of 85, not four times.
TEMPER: Final = 0.25
POOL_BATCHES: Final = 16


def split_validation(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Split rows into those to train on and those to validate on.

    Each intent gives its share, one row at least where it has two, taken evenly over its sources and by the texts'
    hashes: the same rows in another order are split alike.
    """
    intents: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        intents[row.intent].append(row)
    taken: set[str] = set()
    for its_rows in intents.values():
        ordered = sorted(its_rows, key=lambda row: (row.source, hashlib.sha256(row.text.encode()).digest()))
        count = max(round(len(ordered) * share), 1) if len(ordered) > 1 else 0
        taken.update(ordered[int((index + 0.5) * len(ordered) / count)].text for index in range(count))
    return [row for row in rows if row.text not in taken], [row for row in rows if row.text in taken]


def sampling_weights(rows: Sequence[Row]) -> list[float]:
    """Weigh each row so that neither a large intent nor one source's style stands for the rest; they sum to 1.

    An intent is drawn in proportion to its size to the power `TEMPER`, a source within it likewise.
    """
    intents = Counter(row.intent for row in rows)
    groups = Counter((row.intent, row.source) for row in rows)
    within: defaultdict[str, float] = defaultdict(float)
    for (intent, _), size in groups.items():
        within[intent] += math.pow(size, TEMPER)
    total = sum(math.pow(size, TEMPER) for size in intents.values())

    def weight(row: Row) -> float:
        size = groups[row.intent, row.source]
        of_intent = math.pow(intents[row.intent], TEMPER) / total
        of_source = math.pow(size, TEMPER) / within[row.intent]
        return of_intent * of_source / size

    return [weight(row) for row in rows]


def draw_batches(
    lengths: Sequence[int], weights: Sequence[float], batch_size: int, chance: random.Random
) -> list[list[int]]:
    """Draw one epoch: indices of rows, as many as there are rows, in batches of near lengths and in random order.

    Sorting by length within a pool of some batches saves most of the padding and keeps batches mixed.
    """
    drawn = _systematic_draw(weights, chance)
    pool = batch_size * POOL_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(drawn), pool):
        near = sorted(drawn[start : start + pool], key=lengths.__getitem__)
        batches += [near[at : at + batch_size] for at in range(0, len(near), batch_size)]
    chance.shuffle(batches)
    return batches


def _systematic_draw(weights: Sequence[float], chance: random.Random) -> list[int]:
    """Draw len(weights) indices so that each comes within one of its expected count (systematic resampling)."""
    order = list(range(len(weights)))
    chance.shuffle(order)
    drawn: list[int] = []
    reached, mark = 0.0, chance.random()
    for index in order:
        reached += weights[index] * len(weights)
        while mark < reached:
            drawn.append(index)
            mark += 1
    chance.shuffle(drawn)
    return drawn
