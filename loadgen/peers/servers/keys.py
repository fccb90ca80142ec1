"""The key of an answer in the peers' store, so that a store can be filled from outside."""

import hashlib
import re
from string import ascii_lowercase, ascii_uppercase

_BLANKS = re.compile(r"[ \t\n\r]+")
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def key_of(text: str) -> str:
    """SHA-256 of the text in ASCII lower case, with runs of blanks made one."""
    normalised = _BLANKS.sub(" ", text).strip(" ").translate(_LOWER)
    return hashlib.sha256(normalised.encode()).hexdigest()
