"""Keys: the same text has one key, different texts have two."""

import hashlib
import timeit
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from deployments.core.text import correction_key, normalise, prediction_key

STEPS = ("collapse_whitespace", "lowercase_ascii")


def test_the_prediction_key_is_the_hash_of_the_normalised_text_in_a_hash_tag_and_the_version():
    """Worked by hand: case and blanks go, the version stays outside the braces."""
    digest = hashlib.sha256(b"write a haiku").hexdigest()

    assert prediction_key("  Write\n a\t\tHAIKU ", STEPS, "v1") == f"ig:{{{digest}}}:v1"


def test_another_model_version_is_another_key():
    """So a new model never serves an old one's predictions."""
    assert prediction_key("a", STEPS, "v1") != prediction_key("a", STEPS, "v2")


def test_only_ascii_is_lowercased():
    """Python's final sigma differs from the tokenisers', so letters beyond ASCII stay as they are."""
    assert normalise("ΑΣ ABC", STEPS) == "ΑΣ abc"


def test_a_correction_keeps_case_and_ignores_unicode_form_and_blanks():
    """`é` is one text however it is composed; `Polish` and `polish` are two."""
    digest = hashlib.sha256("caf\u00e9 au lait".encode()).hexdigest()

    assert correction_key("caf\u00e9  au\nlait ") == correction_key("cafe\u0301 au lait") == digest
    assert correction_key("Polish") != correction_key("polish")


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str):
    """Otherwise a text and its normal form would have two keys."""
    once = normalise(text, STEPS)

    assert normalise(once, STEPS) == once


def test_endless_combining_marks_cost_no_more_than_other_texts():
    """CPython sorts a run of them in quadratic time; 5,000 of them would hold the event loop for 17 ms."""
    text = "a" + "\u0301\u0327" * 2499
    slow = min(timeit.repeat(lambda: unicodedata.normalize("NFC", text), number=1, repeat=3))
    ours = min(timeit.repeat(lambda: correction_key(text), number=1, repeat=3))

    assert ours < slow / 3
