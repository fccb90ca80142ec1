"""The bare forward pass: what it costs in arithmetic, what is measured, and how it is told."""

from pathlib import Path
from typing import NamedTuple

import pytest

from loadgen import model
from loadgen.load import LoadError
from loadgen.model import Plan, Sizes, batched, chosen_ways, rounds

KNOWN = (("onnx", "int8"), ("onnx", "fp32"), ("torch", "bf16"), ("torch", "fp32"))


class Text(NamedTuple):
    ids: tuple[int, ...]


def test_the_arithmetic_of_a_pass_by_hand():
    """One layer, hidden 2, intermediate 8: 4·2² + 2·2·8 = 48 weights; 3 tokens · (2·48 + 4·3·2) = 360."""
    assert Sizes(layers=1, hidden=2, intermediate=8).flop(batch=1, length=3) == 360
    assert Sizes(layers=5, hidden=2, intermediate=8).flop(batch=2, length=3) == 3600


def test_a_short_text_is_a_third_of_a_gflop(tmp_path: Path):
    """All-MiniLM-L6: 6 layers of 384 and 1,536; 16 tokens."""
    config = tmp_path / "config.json"
    config.write_text('{"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 30522}')

    assert Sizes.read(config).flop(1, 16) == pytest.approx(0.342e9, rel=0.001)


def test_twice_the_batch_is_twice_the_arithmetic_and_twice_the_length_more():
    sizes = Sizes(6, 384, 1536)

    assert sizes.flop(2, 16) == 2 * sizes.flop(1, 16)
    assert sizes.flop(1, 32) > 2 * sizes.flop(1, 16)


@pytest.mark.parametrize(
    ("asked", "ways"),
    [
        ({}, tuple(way for way in KNOWN if way[1] != "bf16")),
        ({"device": "cuda"}, KNOWN),
        ({"precisions": ("bf16",)}, (("torch", "bf16"),)),
        ({"runtimes": ("torch",), "precisions": ("fp32", "int8")}, (("torch", "fp32"),)),
    ],
)
def test_what_is_measured_is_what_was_asked_for(asked: dict[str, object], ways: tuple[object, ...]):
    """bf16 on a CPU only by name: where it is emulated it is some 50 times slower."""
    assert tuple(chosen_ways(KNOWN, Plan(**asked))) == ways


def test_a_way_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(LoadError, match="there are onnx int8, onnx fp32"):
        chosen_ways(KNOWN, Plan(runtimes=("torch",), precisions=("int8",)))


def test_real_texts_are_batched_by_length_and_none_is_lost():
    texts = [Text((1,) * length) for length in (9, 2, 5, 2, 7)]

    batches = batched(texts, 2)

    assert [[len(text.ids) for text in batch] for batch in batches] == [[2, 2], [5, 7], [9]]


def test_a_round_is_measured_three_times_at_least_and_the_first_not_at_all():
    calls = []

    assert len(rounds(lambda: calls.append(1), seconds=0)) == 3
    assert len(calls) == 4


@pytest.mark.parametrize(("given", "numbers"), [("1,8", (1, 8)), (" 32 ", (32,))])
def test_whole_numbers_are_read(given: str, numbers: tuple[int, ...]):
    assert model.whole_numbers(given, "batch") == numbers


@pytest.mark.parametrize("given", ["", "1,,2", "1.5", "0"])
def test_what_is_no_whole_number_is_named(given: str):
    with pytest.raises(ValueError, match="batch is"):
        model.whole_numbers(given, "batch")
