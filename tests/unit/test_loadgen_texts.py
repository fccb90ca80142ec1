"""Generated texts are plausible, of the asked length, never the same twice; corpora are read and checked."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import phrases
from loadgen.texts import CoinedNames, TextSource, normalised, parse_lengths, vary
from loadgen.traffic import Traffic

NUMBERS = st.integers(0, 10_000) | st.integers(0, 10**15)
WORDS = st.integers(1, 800)
SEEDS = st.integers(0, 2**64)
# What a service may take for blanks or ignore the case of, and what it may not.
PLAIN = st.text(st.sampled_from("aAbZ \t\n\r.é\u00a0İ\u03c3\u03a3"), max_size=30)


def source(**fields: Any) -> TextSource:
    return TextSource(Traffic.model_validate(fields))


def words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def templates() -> Iterator[phrases.Template]:
    """Everything that a generated text may be made of."""
    yield from (template for short in phrases.SHORT.values() for template in short)
    yield from phrases.INTRODUCTIONS
    for task in phrases.TASKS:
        yield from task.cores
        yield from (wish for wishes in task.wishes.values() for wish in wishes)
        yield from (template for paste in task.pastes for template in (*paste.leads, *paste.head, *paste.lines))


def vocabulary() -> set[str]:
    """Every word that is not a coined name."""
    parts = [part for template in templates() for part in template.parts if part not in ("{name}", "{low}")]
    return {word for part in parts for each in ([part] if isinstance(part, str) else part) for word in words_of(each)}


def test_no_ordinary_word_looks_like_a_coined_name():
    """Otherwise two numbers could share a text."""
    names = CoinedNames(seed=1)

    assert len(vocabulary()) > 900
    assert [word for word in vocabulary() if names.number(word) is not None] == []


def test_every_prompt_has_its_name():
    """Short ones and all tasks; and the number of words is that of the filled template."""
    named = [*(template for short in phrases.SHORT.values() for template in short)]
    named += [core for task in phrases.TASKS for core in task.cores]

    assert all("{name}" in template.parts or "{low}" in template.parts for template in named)
    assert all(template.words == words for words, short in phrases.SHORT.items() for template in short)
    assert all(len(word.split()) == 1 for slot in phrases.SLOTS.values() for word in slot.split())


@given(number=NUMBERS, words=WORDS, seed=SEEDS)
def test_a_text_tells_its_number(number: int, words: int, seed: int):
    """Even in lower case with blanks collapsed: so no two numbers share a text, and it fits the service's limit."""
    text = source(text_seed=seed, lengths=str(words)).text(number)
    names = CoinedNames(seed)

    assert {names.number(word) for word in words_of(normalised(text))} - {None} == {number}
    assert 1 <= len(text) <= 5000
    assert text.isascii()
    assert text == text.strip()


@given(number=NUMBERS, seed=SEEDS)
def test_names_and_numbers_are_one_to_one(number: int, seed: int):
    names = CoinedNames(seed)

    assert names.number(names.name(number)) == number


def test_names_of_one_length_are_used_up_before_longer_ones():
    """By hand: 80 syllables, three of them, and 6 last letters are 3,072,000 names of 7 letters."""
    names = CoinedNames(seed=3)

    assert [len(names.name(number)) for number in (0, 3_071_999, 3_072_000)] == [7, 7, 9]


def test_numbers_begin_at_zero():
    with pytest.raises(ValueError, match="text -1 was asked for; numbers begin at 0"):
        source().text(-1)


def test_ten_thousand_texts_are_ten_thousand_different_ones():
    made = source()

    assert len({normalised(made.text(number)) for number in range(10_000)}) == 10_000


@pytest.mark.parametrize("words", [1, 3, 12, 60])
def test_another_seed_is_other_texts(words: int):
    """No text of 10,000 is among 10,000 of another seed, except where a text is one of three million names."""
    one, other = (
        {normalised(made.text(number)) for number in range(10_000)}
        for made in (source(text_seed=seed, lengths=str(words)) for seed in (1, 2))
    )

    assert len(one & other) <= (100 if words == 1 else 5 if words == 3 else 0)


def test_another_seed_asks_for_other_things():
    """Not the same prompts under other names: hardly one in a hundred is alike once its name is left out."""
    pairs = [
        [
            source(text_seed=seed).text(number).replace(CoinedNames(seed).name(number), "").split()
            for number in range(100)
        ]
        for seed in (1, 2)
    ]

    assert sum(one == other for one, other in zip(*pairs, strict=True)) <= 2


def test_a_pasted_log_is_in_the_order_of_its_times():
    logs = [re.findall(r"^2025-\d\d-\d\d \d\d:\d\d", source(lengths="250").text(n), re.MULTILINE) for n in range(60)]

    assert sum(len(log) > 10 for log in logs) > 2
    assert all(log == sorted(log) for log in logs)


def test_texts_are_the_same_in_every_process():
    """Hash randomisation of strings plays no part."""
    code = (
        "from loadgen.texts import TextSource; from loadgen.traffic import Traffic;"
        "print([TextSource(Traffic(text_seed=5)).text(number) for number in range(200)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert outputs == {f"{[source(text_seed=5).text(number) for number in range(200)]}\n"}


def test_the_order_of_asking_makes_no_difference():
    """A text is a function of its number alone, remembered or not."""
    forwards, backwards = source(), source()

    assert [forwards.text(n) for n in range(300)] == [backwards.text(n) for n in reversed(range(300))][::-1]


@given(number=NUMBERS, words=st.integers(1, 400))
def test_the_number_of_words_is_nearly_the_asked_one(number: int, words: int):
    """One less at most."""
    assert words - 1 <= len(source(lengths=str(words)).text(number).split()) <= words


@pytest.mark.parametrize("words", [500, 650, 800])
def test_long_texts_are_nearly_as_long_as_asked(words: int):
    """On average within a tenth: pasted logs and code may come to the limit of 5,000 characters first."""
    made = source(lengths=str(words))
    counts = [len(made.text(number).split()) for number in range(200)]

    assert max(counts) <= words
    assert sum(counts) / len(counts) >= 0.9 * words


def test_lengths_come_in_their_shares():
    made = source(lengths="12:0.7,60:0.25,250:0.05")
    counts = [len(made.text(number).split()) for number in range(4000)]
    nearest = Counter(12 if count < 30 else 60 if count < 150 else 250 for count in counts)

    assert [nearest[words] / 4000 for words in (12, 60, 250)] == pytest.approx([0.7, 0.25, 0.05], abs=0.03)


def test_texts_are_not_repetitive():
    """Of 1,000 texts of 12 words, at least 900 differ even with the name left out, and none begins a tenth of them."""
    made, names = source(lengths="12"), CoinedNames(1)
    nameless = [re.sub(names.name(number), "", made.text(number), flags=re.IGNORECASE) for number in range(1000)]

    assert len(set(nameless)) >= 900
    assert Counter(" ".join(text.split()[:3]) for text in nameless).most_common(1)[0][1] < 100


@given(text=PLAIN | st.text(max_size=20), form=st.integers(0, 1 << 16))
def test_a_variant_is_the_same_text_to_the_service(text: str, form: int):
    """Only ASCII case and ASCII blanks differ."""
    assert normalised(vary(text, form)) == normalised(text)


@given(number=NUMBERS, words=WORDS, form=st.integers(0, 1 << 16))
def test_a_variant_is_another_string_within_the_limit(number: int, words: int, form: int):
    """Even forms change the case, odd ones only blanks, where there is room for one more."""
    text = source(lengths=str(words)).text(number)

    varied = vary(text, form)

    assert varied != text
    assert len(varied) <= 5000
    assert ("".join(varied.split()) == "".join(text.split())) == (form % 2 == 1 and len(text) < 5000)


def test_a_text_at_the_limit_is_varied_in_case():
    """There is no room for a blank more."""
    assert {vary("a" * 5000, form) for form in range(8)} == {"A" * 5000}


def test_normalised_worked_example():
    """By hand: ASCII letters in lower case, ASCII blanks collapsed, everything else left alone."""
    assert normalised("  Write\n a\t\tHAIKU \r\n in É\u00a0Σ ") == "write a haiku in É\u00a0Σ"


@pytest.mark.parametrize(
    ("lengths", "parsed"),
    [
        ("12", [(12, 1)]),
        ("12:1", [(12, 1)]),
        (" 1:0.5 , 800:0.5", [(1, 0.5), (800, 0.5)]),
        ("1:0.333,2:0.333,3:0.333", [(1, 1 / 3), (2, 1 / 3), (3, 1 / 3)]),
    ],
)
def test_lengths_are_words_and_shares(lengths: str, parsed: list[tuple[int, float]]):
    """Shares that miss 1 by rounding are made to add up to it."""
    assert [words for words, _ in parse_lengths(lengths)] == [words for words, _ in parsed]
    assert [share for _, share in parse_lengths(lengths)] == pytest.approx([share for _, share in parsed])


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [
        ("", "a part is words:share, such as 12:0.7"),
        ("12:0.7,", "a part is words:share"),
        ("12:many", "lengths has '12:many'"),
        ("12.5:1", "a part is words:share"),
        ("0:1", "lengths asks for 0 words; 1 to 800 fit"),
        ("801:1", "lengths asks for 801 words"),
        ("12:0.7,60:0.2", "add up to 0.9; they must add up to 1"),
        ("12:1,60:0", "has share 0 for 60 words"),
        ("12:1.5,60:-0.5", "has share 1.5 for 12 words"),
        ("12:nan", "has share nan"),
    ],
)
def test_wrong_lengths_are_refused(lengths: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        parse_lengths(lengths)


def corpus_file(folder: Path, content: str | bytes, name: str = "corpus.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_corpus_of_lines_keeps_its_order_and_drops_repetitions(tmp_path: Path):
    """By hand: case and blanks make no other text; blank lines and the byte order mark are none."""
    path = corpus_file(tmp_path, "\ufeffFirst text\r\n\n  \nsecond: {}\nfirst   TEXT\nthird\u2028line\n")

    made = source(corpus=path)

    assert made.size == 3
    assert [made.text(number) for number in range(3)] == ["First text", "second: {}", "third\u2028line"]


def test_a_corpus_of_rows_gives_their_texts(tmp_path: Path):
    rows = [{"text": "a\nb", "intent": "x"}, {"text": " \n"}, {"text": "A  B"}, {"text": "c"}]
    path = corpus_file(tmp_path, "\n".join(map(json.dumps, rows)), "corpus.jsonl")

    made = source(corpus=path)

    assert [made.text(number) for number in range(made.size or 0)] == ["a\nb", "c"]


def test_a_corpus_ends(tmp_path: Path):
    with pytest.raises(ValueError, match="text 1 was asked for; the corpus has 1 different ones"):
        source(corpus=corpus_file(tmp_path, "one")).text(1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", "", "no texts; write one on each line"),
        ("blank.txt", "\n \n", "no texts"),
        ("latin.txt", b"a\n\xe9t\xe9\n", "line 2: not UTF-8"),
        ("long.txt", "a\n" + "b" * 5001, "line 2: the text has 5,001 characters; the limit is 5,000"),
        ("rows.jsonl", '{"text": "a"}\nplain', "line 2: not JSON .*name a file of plain lines .txt"),
        ("rows.ndjson", '{"text": "a"}\n\n{"prompt": "a"}', "line 3: no text"),
        ("rows.jsonl", '{"text": 5}', "line 1: no text"),
        ("rows.jsonl", '["text"]', "line 1: no text"),
    ],
)
def test_a_malformed_corpus_is_refused_by_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
):
    path = corpus_file(tmp_path, content, name)

    with pytest.raises(ValueError, match=complaint) as refusal:
        source(corpus=path)
    assert str(refusal.value).startswith(str(path))


def test_a_corpus_that_cannot_be_read_is_refused(tmp_path: Path):
    """A missing file, a folder."""
    with pytest.raises(ValueError, match=r"none\.txt: cannot be read \(No such file"):
        source(corpus=tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory"):
        source(corpus=tmp_path)
