"""What is asked for: prompts such as people send to language models, made by number or read from a corpus.

A generated text is a prompt (`prompts.py`) about something with a coined name. The name spells the text's number, so
that no two numbers share a text: see `TextSource`. Which number is asked when is `traffic.py`'s matter.
"""

import json
import math
import random
import string
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.prompts import MAX_TEXT, prompt

if TYPE_CHECKING:
    from loadgen.traffic import Traffic

MAX_WORDS = 800
CASE_SHARE = 0.5
"""Share of the forms of `vary` that change case."""
KEPT_TEXTS = 16_384
"""Texts a source remembers: at most 80 MB, 4 MB of the usual length."""


class TextSource:
    """Texts by number, from a corpus or generated; number 0 is the most popular.

    A corpus gives its different texts in the file's order, whatever `text_seed` says. Generated texts are a pure
    function of (`text_seed`, number). Two numbers never share one, even in lower case and with blanks collapsed: each
    text holds one coined name, the name determines the number, and no other word has a coined name's shape.
    """

    def __init__(self, traffic: "Traffic") -> None:
        self._corpus = read_corpus(traffic.corpus) if traffic.corpus else None
        self._seed = traffic.text_seed
        self._names = CoinedNames(traffic.text_seed)
        self._words, shares = zip(*parse_lengths(traffic.lengths), strict=True)
        self._cumulative_shares = list(accumulate(shares))[:-1]
        self._generated = lru_cache(maxsize=KEPT_TEXTS)(self._generate)

    @property
    def size(self) -> int | None:
        """How many different texts there are; None: no end of them."""
        return None if self._corpus is None else len(self._corpus)

    def text(self, number: int) -> str:
        """The text of a number, 1 to 5,000 characters; the words are those asked for or nearly so.

        Raises:
            ValueError: no such text.
        """
        if self._corpus is None:
            return self._generated(number)
        if not 0 <= number < len(self._corpus):
            raise ValueError(f"text {number:,} was asked for; the corpus has {len(self._corpus):,} different ones")
        return self._corpus[number]

    def _generate(self, number: int) -> str:
        rng = random.Random(f"{self._seed} {number}")  # noqa: S311 — no secret; seeded alike in every process
        words = self._words[bisect_right(self._cumulative_shares, rng.random())]
        return prompt(rng, self._names.name(number), words)


class CoinedNames:
    """A bijection between numbers and pronounceable names (`Tavirel`), another one for each seed.

    A name is three or more syllables of a consonant and a vowel, and a last consonant. Numbers are shuffled among the
    names of one length, the short ones first: 3 million of 7 letters, 246 million of 9, and so on.
    """

    ONSETS = "bdfgjklmnprstvwz"
    VOWELS = "aeiou"
    CODAS = "kmnvxz"
    FEWEST = 3

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._syllables = [onset + vowel for onset in self.ONSETS for vowel in self.VOWELS]
        self._shuffle = lru_cache(self._make_shuffle)

    def name(self, number: int) -> str:
        """The name of a number, capitalised.

        Raises:
            ValueError: a negative number.
        """
        if number < 0:
            raise ValueError(f"text {number:,} was asked for; numbers begin at 0")
        syllables = self.FEWEST
        while number >= (size := self._size(syllables)):
            number -= size
            syllables += 1
        factor, shift = self._shuffle(syllables)
        rest, coda = divmod((number * factor + shift) % size, len(self.CODAS))
        letters = self.CODAS[coda]
        for _ in range(syllables):
            rest, syllable = divmod(rest, len(self._syllables))
            letters = self._syllables[syllable] + letters
        return letters.capitalize()

    def number(self, name: str) -> int | None:
        """The number of a name, in any case; None for a word that is no coined name."""
        onsets, vowels, coda = name[:-1:2].lower(), name[1::2].lower(), name[-1:].lower()
        syllables = len(vowels)
        if syllables < self.FEWEST or len(name) != 2 * syllables + 1 or coda not in self.CODAS:
            return None
        shuffled = 0
        for onset, vowel in zip(onsets, vowels, strict=True):
            if onset not in self.ONSETS or vowel not in self.VOWELS:
                return None
            shuffled = shuffled * len(self._syllables) + self._syllables.index(onset + vowel)
        shuffled = shuffled * len(self.CODAS) + self.CODAS.index(coda)
        factor, shift = self._shuffle(syllables)
        place = (shuffled - shift) * pow(factor, -1, self._size(syllables)) % self._size(syllables)
        return place + sum(map(self._size, range(self.FEWEST, syllables)))

    def _size(self, syllables: int) -> int:
        """How many names have so many syllables."""
        size: int = len(self._syllables) ** syllables * len(self.CODAS)
        return size

    def _make_shuffle(self, syllables: int) -> tuple[int, int]:
        """Factor and shift of x → factor·x + shift, a permutation modulo the size when they share no divisor."""
        rng = random.Random(f"{self._seed} names of {syllables}")  # noqa: S311 — no secret
        size = self._size(syllables)
        factor = rng.randrange(size // 4, size // 2)
        while math.gcd(factor, size) != 1:
            factor += 1
        return factor, rng.randrange(size)


def parse_lengths(lengths: str) -> list[tuple[int, float]]:
    """`12:0.7,60:0.3` as (words, share); `12` alone is every text. Shares within 0.001 of 1 together are made 1.

    Raises:
        ValueError: says which part is wrong, the limit and the remedy.
    """
    parts = [_length(part) for part in lengths.split(",")] if ":" in lengths else [_length(f"{lengths}:1")]
    total = math.fsum(share for _, share in parts)
    if abs(total - 1) > 0.001 + 1e-9:
        raise ValueError(f"the shares of lengths {lengths!r} add up to {total:g}; they must add up to 1")
    return [(words, share / total) for words, share in parts]


def _length(part: str) -> tuple[int, float]:
    words, _, share = part.partition(":")
    try:
        parsed = int(words), float(share)
    except ValueError:
        raise ValueError(f"lengths has {part.strip()!r}; a part is words:share, such as 12:0.7") from None
    if not 1 <= parsed[0] <= MAX_WORDS:
        raise ValueError(f"lengths asks for {parsed[0]:,} words; 1 to {MAX_WORDS} fit into {MAX_TEXT:,} characters")
    if not 0 < parsed[1] <= 1:
        raise ValueError(f"lengths has share {parsed[1]:g} for {parsed[0]} words; a share is above 0 and at most 1")
    return parsed


def normalised(text: str) -> str:
    """What the variants of a text have in common: ASCII letters in lower case, runs of ASCII blanks as one."""
    return " ".join(part for part in _lower(text).translate(_BLANKS).split(" ") if part)


def vary(text: str, form: int) -> str:
    """The text in other case or with other blanks, ASCII's only, so that `normalised` is the same; ≤ 5,000 characters.

    Even forms change case (`CASE_SHARE` of them; where there are letters), odd ones blanks alone (where there is room).
    """
    if form % 2 and len(text) < MAX_TEXT:
        return _other_blanks(text, form // 2)
    return _other_case(text, form // 2)


def _other_blanks(text: str, form: int) -> str:
    match form % 4:
        case 0:
            return text + "\n"
        case 1:
            return " " + text
        case 2:
            return text.replace(" ", "  ", 1) if " " in text else text + " "
        case _:
            # Every gap doubled, as far as there is room.
            return text.replace(" ", "  ", MAX_TEXT - len(text)) if " " in text else "\t" + text


def _other_case(text: str, form: int) -> str:
    changes = (_lower, _upper, _swapped)
    changed = changes[form % len(changes)](text)
    return _swapped(text) if changed == text else changed


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_TO_LOWER)


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else text.translate(_TO_UPPER)


def _swapped(text: str) -> str:
    return text.swapcase() if text.isascii() else text.translate(_TO_OTHER)


_TO_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_TO_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_TO_OTHER = _TO_LOWER | _TO_UPPER
_BLANKS = str.maketrans("\t\n\r", "   ")


def read_corpus(path: Path) -> list[str]:
    """The different texts of a file, in its order; texts with the same `normalised` form count once.

    `.jsonl` and `.ndjson` files have a JSON object with `text` on each line; in any other file a line is a text.

    Raises:
        ValueError: names the file, the line and what to do.
    """
    is_json = path.suffix in (".jsonl", ".ndjson")
    texts: dict[str, str] = {}
    for number, line in numbered_lines(path):
        text = _json_text(path, number, line) if is_json else line
        check_sendable(text, f"{path} line {number}")
        if len(text) > MAX_TEXT:
            raise ValueError(
                f"{path} line {number}: the text has {len(text):,} characters; the limit is {MAX_TEXT:,}; shorten it"
            )
        if key := normalised(text):
            texts.setdefault(key, text)
    if not texts:
        raise ValueError(f"{path}: no texts; write one on each line")
    return list(texts.values())


def _json_text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path} line {number}: not JSON ({error}); name a file of plain lines .txt") from None
    match row:
        case {"text": str(text)}:
            return text
    raise ValueError(f'{path} line {number}: no text; a row is {{"text": "…"}}')


def check_sendable(text: str, place: str) -> None:
    """Refuse what JSON can escape and UTF-8 cannot carry.

    Raises:
        ValueError: a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the text has a lone surrogate, which UTF-8 cannot carry; remove it") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, counted from 1.

    Raises:
        ValueError: names the file, and the line when it is not UTF-8.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if (text := _decoded(path, number, line).rstrip("\r\n")).strip():
                    yield number, text
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} line {number}: not UTF-8; convert the file") from None
