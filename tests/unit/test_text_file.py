"""The texts of a file: three forms, the most frequent first, and each fault with its line."""

import json
from pathlib import Path

import pytest

from deployments.core.errors import StartupError
from deployments.local.text_file import most_frequent


def written(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    """A file of `folder`."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


FORMS = {
    "lines": ("b\n\na\r\nb\n", "prompts.txt"),
    "rows": ('{"text":"b","intent":"x"}\n\n{"text":"a"}\n{"text":"b"}\n', "prompts.jsonl"),
    "rows of no name": (' { "text": "b"}\n{"text":"a"}\n{"text":"b"}', "prompts"),
    "trace": ('{"time_s":0.5,"text":"b"}\n{"time_s":0.1,"text":"a"}\n{"time_s":2,"text":"b"}\n', "trace.jsonl"),
    "trace of batches": ('{"time_s":0.5,"texts":["b","a"]}\n{"time_s":0.1,"text":"b"}\n', "trace.jsonl"),
    "with a byte order mark": (b'\xef\xbb\xbf{"text":"b"}\n{"text":"a"}\n{"text":"b"}', "prompts.jsonl"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_its_texts(tmp_path: Path, form: str):
    """Once each, the most frequent first; blank lines are none."""
    assert most_frequent(written(tmp_path, *FORMS[form])) == ["b", "a"]


def test_only_the_most_frequent_are_taken_and_equals_in_the_files_order(tmp_path: Path):
    """So the same file always warms the same texts."""
    file = written(tmp_path, "c\na\nb\na\nd\nb\n")

    assert most_frequent(file, 3) == ["a", "b", "c"]
    assert most_frequent(file, 9) == ["a", "b", "c", "d"]


def test_a_line_that_merely_looks_odd_is_a_text(tmp_path: Path):
    """Prompts hold braces, quotes and blanks of their own."""
    texts = ["{name} says", "  indented", "[1]"]

    assert most_frequent(written(tmp_path, "\n".join(texts))) == texts


FAULTS = {
    "not JSON": ('{"text":"a"}\n\nplain\n', "p.jsonl", ":3: not JSON"),
    "the first row not JSON": ("plain\n", "p.jsonl", ":1: not JSON"),
    "no object": ('{"text":"a"}\n["b"]\n', "p.jsonl", ":2: a JSON object is expected"),
    "no text": ('{"text":"a"}\n{"prompt":"b"}\n', "p.jsonl", ':2: no text; add a "text" or remove the line'),
    "null": ('{"text":null}\n', "p.jsonl", ":1: no text"),
    "a number": ('{"text":5}\n', "p.jsonl", ":1: 'text' is 5; write a string"),
    "blank": ('{"text":" "}\n', "p.jsonl", ":1: text: is blank"),
    "half a character": ('{"text":"\\ud800"}\n', "p.jsonl", ":1: 'text' holds half a surrogate pair"),
    "half a character in a batch": ('{"texts":["\\ud800"]}\n', "p.jsonl", ':1: "texts" is no list of texts'),
    "texts of a row that are none": ('{"texts":[1]}\n', "p.jsonl", ':1: "texts" is no list of texts'),
    "too long": ("a\n" + "x" * 5001, "p.txt", ":2: text: has 5,001 characters; the limit is 5,000"),
    "NUL": ("a\nb\0\n", "p.txt", ":2: text: contains the character NUL"),
    "not UTF-8": (b"a\n\xff\n", "p.txt", ":2: not UTF-8 (byte 0); convert the file"),
    "nothing": ("\n \n", "p.txt", ": no text came in"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_file_and_line(tmp_path: Path, name: str):
    """And what to do, before anything is sent."""
    content, file_name, said = FAULTS[name]
    file = written(tmp_path, content, file_name)

    with pytest.raises(StartupError) as fault:
        most_frequent(file)
    assert f"{file}{said}" in str(fault.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    """One that is not there, or a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(StartupError, match="cannot be read"):
            most_frequent(path)


def test_a_long_text_counts_characters_not_bytes(tmp_path: Path):
    """As the service does."""
    text = "𝄞" * 5000

    assert most_frequent(written(tmp_path, json.dumps({"text": text}), "p.jsonl")) == [text]
