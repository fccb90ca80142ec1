"""The local tier: ready answers, within a bound, never staler than what stands behind it.

`KEYS` says with how many texts the process's memory is watched. Ten million take some minutes:

    KEYS=10000000 python -m pytest tests/unit/test_local_tier.py -k process --timeout 1200 -s
"""

import os
import sys
import tracemalloc

import psutil
import pytest

from deployments.core import metrics
from deployments.core.corrections import Correction
from deployments.core.local_tier import ENTRY_BYTES, Kept, LocalTier
from deployments.core.settings import Settings
from tests.unit.fakes import CountingMetrics

CORRECTION = Correction("1-0", "translation", None, None, 0.0)
BODY = b'{"intent":"reasoning"}'
KEYS = int(os.environ.get("KEYS", "200000"))
KEYS_A_LOOK = 10_000


class Tier(LocalTier):
    """An open tier with corrections and a clock of the test's own."""

    def __init__(self, *, max_bytes: int = 1_000_000) -> None:
        self.corrections: dict[str, Correction] = {}
        self.counted = CountingMetrics()
        self.now_s = 100.0
        super().__init__(
            max_bytes=max_bytes,
            ttl_s=30,
            correction=self.corrections.get,
            recorder=self.counted,
            clock=lambda: self.now_s,
        )
        self.open()

    def keep(
        self, text: str, body: bytes = BODY, *, correction: Correction | None = None, scores: bool = False
    ) -> None:
        self.put(text, Kept(body, f"key of {text}", correction), scores=scores, generation=self.generation)

    def body(self, text: str, *, scores: bool = False) -> bytes | None:
        kept = self.get(text, scores=scores)
        return kept and kept.body


def test_an_answer_is_served_for_its_time():
    """Until the thirtieth second, and no longer."""
    tier = Tier()
    tier.keep("a")
    tier.now_s += 29.9
    before = tier.body("a")
    tier.now_s += 0.1

    assert (before, tier.body("a"), len(tier), tier.size_bytes) == (BODY, None, 0, 0)


def test_answers_with_scores_are_answers_of_their_own():
    """The same text, another body."""
    tier = Tier()
    tier.keep("a", b"plain")
    tier.keep("a", b"scored", scores=True)

    assert (tier.body("a"), tier.body("a", scores=True)) == (b"plain", b"scored")


@pytest.mark.parametrize(("made_with", "in_force"), [(None, CORRECTION), (CORRECTION, None)])
def test_a_correction_that_comes_or_goes_ends_the_answer_at_once(
    made_with: Correction | None, in_force: Correction | None
):
    """Nobody tells the tier: it asks."""
    tier = Tier()
    tier.keep("a", correction=made_with)
    if in_force:
        tier.corrections["key of a"] = in_force

    assert tier.body("a") is None
    assert len(tier) == 0


def test_an_overlay_read_anew_ends_no_answer():
    """Equal corrections are the same word, whichever object carries it."""
    tier = Tier()
    tier.keep("a", correction=CORRECTION)
    tier.corrections["key of a"] = Correction("1-0", "translation", None, None, 0.0)

    assert tier.body("a") == BODY


def test_a_purge_empties_it_and_what_was_asked_for_before_is_not_kept():
    """The store's answer may be on its way while the purge passes."""
    tier = Tier()
    tier.keep("a")
    asked_in = tier.generation
    tier.clear()
    tier.put("b", Kept(BODY, "key of b", None), scores=False, generation=asked_in)

    assert (tier.body("a"), tier.body("b"), tier.size_bytes) == (None, None, 0)
    assert tier.counted.last(metrics.LOCAL_BYTES) == 0


def test_closed_it_keeps_nothing_and_opened_nothing_from_before():
    """A purge may have passed between the question and the subscription."""
    tier = Tier()
    tier.keep("a")
    tier.close()
    asked_in = tier.generation
    closed = tier.body("a")
    tier.keep("b")
    tier.open()
    tier.put("c", Kept(BODY, "key of c", None), scores=False, generation=asked_in)

    assert (closed, tier.body("b"), tier.body("c")) == (None, None, None)


def test_the_least_recently_used_leave_first():
    """Room for two: what was read stays, what was not leaves."""
    size = sys.getsizeof("a") + sys.getsizeof(BODY) + ENTRY_BYTES
    tier = Tier(max_bytes=2 * size)
    tier.keep("a")
    tier.keep("b")
    tier.body("a")
    tier.keep("c")

    assert [tier.body(text) for text in "abc"] == [BODY, None, BODY]
    assert tier.size_bytes == 2 * size


def test_an_answer_larger_than_everything_is_not_kept():
    """And takes nothing else with it for good."""
    tier = Tier(max_bytes=10_000)
    tier.keep("a", b"x" * 20_000)
    tier.keep("b")

    assert (tier.body("a"), tier.body("b")) == (None, BODY)


def test_an_answer_kept_again_counts_once():
    """The newer body, and its size."""
    tier = Tier()
    tier.keep("a", b"x" * 1000)
    tier.keep("a")
    tier.forget("a")

    assert (tier.body("a"), tier.size_bytes) == (None, 0)


def test_without_room_it_never_opens():
    """`local_tier_bytes: 0` switches it off."""
    tier = Tier(max_bytes=0)
    tier.keep("a")

    assert not tier.is_open
    assert tier.body("a") is None


def fill(tier: LocalTier, numbers: range, text_length: int) -> None:
    """Keep an answer of the usual size for each number's text."""
    for n in numbers:
        text = f"{n:>{text_length}}"
        key = f"{n:064x}"
        body = b"%0*d" % (230, n)
        tier.put(text, Kept(body, key, None), scores=False, generation=tier.generation)


@pytest.mark.parametrize("text_length", [12, 400])
def test_its_memory_stays_within_the_bound_under_ten_times_as_many_texts(text_length: int):
    """Python's own count of what the entries take, not ours: at most a fifth above the bound, nor half of it unused."""
    bound = 4_000_000
    tracemalloc.start()
    tier = Tier(max_bytes=bound)
    before, _ = tracemalloc.get_traced_memory()
    fill(tier, range(40_000), text_length)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(tier) < 10_000
    assert 0.5 * bound < after - before < 1.2 * bound
    assert peak - before < 1.2 * bound


def test_its_process_stays_within_the_shipped_bound_however_many_texts_come():
    """The operating system's count, which has what the allocator cannot give back too."""
    bound = Settings.model_fields["local_tier_bytes"].default
    tier, process = Tier(max_bytes=bound), psutil.Process()
    before, peak = process.memory_info().rss, 0
    for start in range(0, KEYS, KEYS_A_LOOK):
        fill(tier, range(start, start + KEYS_A_LOOK), text_length=40)
        peak = max(peak, process.memory_info().rss - before)
    print(f"{KEYS:,} texts, {len(tier):,} kept: at most {peak / 2**20:.1f} MiB of {bound / 2**20:g}")

    assert 0.9 * bound < tier.size_bytes <= bound
    assert peak < 1.2 * bound
