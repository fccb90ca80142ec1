"""What makes two texts the same text: normalisation and the keys made from it.

Two notions, on purpose. A prediction may be shared by texts the model cannot tell apart, so its normalisation is
declared by the model's artifact. A correction is somebody's word about a text, so its normalisation is fixed and keeps
case.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase

MAX_MARK_RUN = 30
"""No language has more combining marks in a row (Unicode Standard Annex 15, section 13)."""

_ASCII_BLANKS = re.compile(r"[ \t\n\r]+")
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def _collapse_whitespace(text: str) -> str:
    return _ASCII_BLANKS.sub(" ", text).strip(" ")


def _lowercase_ascii(text: str) -> str:
    # ASCII only: beyond it Python and tokenisers disagree (final sigma), and one key must mean one list of tokens.
    return text.translate(_ASCII_LOWER)


NORMALISATIONS: dict[str, Callable[[str], str]] = {
    "collapse_whitespace": _collapse_whitespace,
    "lowercase_ascii": _lowercase_ascii,
}
"""The steps an artifact may declare, by name."""

PREDICTION_KEYS = f"ig:{{{'[0-9a-f]' * 64}}}:*"
"""What every `prediction_key` looks like and no other key does, as a glob of the store's SCAN."""


def normalise(text: str, steps: Sequence[str]) -> str:
    """Apply the artifact's `steps` in order.

    Raises:
        KeyError: a step is not in `NORMALISATIONS`.
    """
    for step in steps:
        text = NORMALISATIONS[step](text)
    return text


def prediction_key(text: str, steps: Sequence[str], model_version: str) -> str:
    """The prediction store's key: `ig:{<sha256 of the normalised text>}:<model version>`.

    The braces are Redis Cluster's hash tag: all versions of one text live in one slot.
    """
    return f"ig:{{{_sha256(normalise(text, steps))}}}:{model_version}"


def correction_key(text: str) -> str:
    """A correction's key: SHA-256, in hex, of the text in NFC with runs of white space made one blank, case kept."""
    return _sha256(" ".join(_composed(text).split()))


def _composed(text: str) -> str:
    """The text in NFC; one with endless runs of combining marks as it is, since sorting a run takes quadratic time."""
    if text.isascii() or max(_mark_runs(text), default=0) > MAX_MARK_RUN:
        return text
    return unicodedata.normalize("NFC", text)


def _mark_runs(text: str) -> Iterator[int]:
    return (sum(1 for _ in run) for is_mark, run in groupby(map(unicodedata.combining, text), bool) if is_mark)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
