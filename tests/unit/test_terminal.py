"""What the commands let a terminal see of texts that others wrote."""

import json

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from deployments.core.errors import StartupError
from deployments.terminal import cells, json_line, one_line_errors, printable, shortened

HOSTILE = "a\x1b[2K\r1-0 approved\n\x9b2J\u202eb\x7f"


@given(st.text())
def test_what_is_shown_is_printable(text: str):
    """Whatever it was, and no longer than allowed."""
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    assert shortened(text, 10).isprintable()
    assert len(shortened(text, 10)) <= 10


def test_a_printable_text_is_shown_as_it_is():
    """Of any script."""
    assert shortened("Grüße 你好 🥐  \n again", 48) == "Grüße 你好 🥐 again"


def test_an_escape_sequence_is_made_harmless():
    """Of it the letters are left."""
    assert shortened(HOSTILE, 48) == "a�[2K 1-0 approved �2J�b�"
    assert cells("[red]\x1b[31m") == ["\\[red]�[31m"]


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_says_the_same_and_is_printable(value: object):
    """Whatever strings are in it."""
    assert json.loads(json_line(value)) == value
    assert json_line(value).isprintable()


def test_json_keeps_letters_and_escapes_the_rest():
    """So that `grep` finds words, and no terminal obeys; half a surrogate pair no output could encode."""
    assert json_line({"text": "Grüße\x9b\u202e\U000e0001"}) == '{"text": "Grüße\\u009b\\u202e\\udb40\\udc01"}'
    assert json_line("\ud800") == '"\\ud800"'


def test_an_error_with_words_of_others_is_harmless(capsys: pytest.CaptureFixture[str]):
    """A server's message too."""
    with pytest.raises(typer.Exit), one_line_errors():
        raise StartupError("x answers \x1b]0;title\x07")

    assert capsys.readouterr().err == "intents: x answers �]0;title�\n"
