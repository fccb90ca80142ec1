"""Writes one prompt: a task about a coined name, brought to the asked number of words.

Further wishes fill it up and, when it is to be long, pasted material. What prompts are made of is in `phrases.py`.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loadgen.phrases import INTRODUCTIONS, SHORT, TASKS, Paste, Task, Template, any_of, by_words

MAX_TEXT = 5000
"""Characters of a text: the service's limit."""
SHORTEST_CORE = 7
SHORTEST_WISH, LONGEST_WISH = 2, 12
SPLIT, SPLIT_SHARE = 8, 0.4
"""Two wishes instead of one fill this share of the gaps of so many words and more."""
INTRODUCED, INTRODUCED_SHARE = 18, 0.4
"""This share of the texts of so many words and more begins with who asks."""
PASTED = 36
"""Words beyond the task from which material is pasted instead of ever more wishes."""


def prompt(rng: random.Random, name: str, words: int) -> str:
    """A prompt about `name`, of about so many words and at most 5,000 characters."""
    if words < SHORTEST_CORE:
        return any_of(rng, SHORT[words]).fill(rng, name)
    draft = _Draft(rng, name, words)
    task = any_of(rng, TASKS)
    if words >= INTRODUCED and rng.random() < INTRODUCED_SHARE:
        draft.add(any_of(rng, INTRODUCTIONS))
    draft.add(any_of(rng, _at_most(task.cores, draft.words)))
    is_long = draft.words >= PASTED
    if is_long:
        _paste(draft, any_of(rng, task.pastes))
    _wish(draft, task, "\n\n" if is_long else " ")
    return "".join(draft.pieces)


@dataclass(slots=True)
class _Draft:
    """A prompt being written; `words` are still to come."""

    rng: random.Random
    name: str
    words: int
    pieces: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, template: Template, joint: str = " ") -> bool:
        """Append a template, filled; False as for `append`."""
        return self.append(template.fill(self.rng, self.name), template.words, joint)

    def append(self, piece: str, words: int, joint: str) -> bool:
        """Append a piece; False when the text would grow beyond its limit."""
        piece = joint + piece if self.pieces else piece
        if self.length + len(piece) > MAX_TEXT:
            return False
        self.pieces.append(piece)
        self.length += len(piece)
        self.words -= words
        return True


def _paste(draft: _Draft, paste: Paste) -> None:
    draft.add(any_of(draft.rng, paste.leads))
    joint = "\n\n"
    for head in paste.head:
        draft.add(head, joint)
        joint = "\n"
    for line, words in _lines(draft, paste):
        if not draft.append(line, words, joint):
            return
        joint = any_of(draft.rng, paste.joints)


def _lines(draft: _Draft, paste: Paste) -> list[tuple[str, int]]:
    """Lines, each with its words, until the next would not fit; each kind once before any comes again."""
    lines: list[tuple[str, int]] = []
    left = draft.words
    for template in _shuffled(draft.rng, paste.lines):
        if template.words > left:
            break
        lines.append((template.fill(draft.rng, draft.name), template.words))
        left -= template.words
    return sorted(lines) if paste.in_order else lines


def _shuffled(rng: random.Random, templates: Sequence[Template]) -> Iterator[Template]:
    while True:
        yield from rng.sample(templates, len(templates))


def _wish(draft: _Draft, task: Task, joint: str) -> None:
    """Add wishes until all words are there, or all but one; none again while others of its length are left."""
    used: set[int] = set()
    while (words := draft.words) >= SHORTEST_WISH:
        if words > LONGEST_WISH or (words >= SPLIT and draft.rng.random() < SPLIT_SHARE):
            # No wish is a single word, so none must be left over.
            words = draft.rng.randint(SHORTEST_WISH, min(LONGEST_WISH, words - SHORTEST_WISH))
        wishes = task.wishes[words]
        wish = any_of(draft.rng, [each for each in wishes if id(each) not in used] or wishes)
        used.add(id(wish))
        if not draft.add(wish, joint):
            return
        joint = " "


def _at_most(templates: tuple[Template, ...], words: int) -> tuple[Template, ...]:
    """Those of at most so many words, of templates by rising length."""
    return templates[: bisect_right(templates, words, key=by_words)]
