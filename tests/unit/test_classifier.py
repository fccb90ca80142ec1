"""The model: what it makes of a text, and what it refuses to be loaded with."""

from __future__ import annotations

import shutil
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact, EncoderSpec
from deployments.core.classifier import Classifier, Tokeniser, Tokens, head_tail, pad
from deployments.core.encoder import check_encoder, encoder_folder, load_encoder, merge_lora
from deployments.core.errors import ArtifactError
from deployments.core.text import normalise
from deployments.training.network import adapters_of, add_adapters

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

ARTIFACT = Artifact.load(DEFAULT_ARTIFACT)
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """The shipped model, loaded once."""
    return Classifier.load(ARTIFACT)


def encoder() -> Path:
    return encoder_folder(ARTIFACT.encoder, relative_to=DEFAULT_ARTIFACT)


@pytest.fixture(scope="module")
def tokeniser() -> Tokeniser:
    """The encoder's tokeniser with room for 16 tokens."""
    return Tokeniser.load(encoder(), max_tokens=16)


@pytest.fixture(scope="module")
def roomy() -> Tokeniser:
    """The encoder's tokeniser with room for all it can read."""
    return Tokeniser.load(encoder(), max_tokens=512)


def test_a_poem_is_creative_writing(classifier: Classifier):
    """The shipped model knows a request for a poem, and its scores are probabilities."""
    [prediction] = classifier.forward(classifier.tokenise(["Write a haiku about autumn"]))

    assert prediction.intent == "creative_writing"
    assert prediction.confidence == max(prediction.scores.values()) == prediction.scores["creative_writing"]
    assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-5)
    assert prediction.techniques == ARTIFACT.techniques_for("creative_writing", prediction.complexity)
    assert prediction.model_version == ARTIFACT.version


def test_an_artifact_abstains_below_its_threshold(classifier: Classifier):
    """Below it the answer is `out_of_scope` without techniques; confidence and scores stay what they were."""
    text = "Write a haiku about autumn"
    [sure] = classifier.forward(classifier.tokenise([text]))
    [unsure] = served(classifier, abstain_below=sure.confidence + 1e-6).forward(classifier.tokenise([text]))
    [kept] = served(classifier, abstain_below=sure.confidence - 1e-6).forward(classifier.tokenise([text]))

    assert (unsure.intent, unsure.techniques) == ("out_of_scope", ())
    assert (unsure.confidence, unsure.scores, unsure.complexity) == (sure.confidence, sure.scores, sure.complexity)
    assert kept == sure


def served(classifier: Classifier, *, abstain_below: float) -> Classifier:
    """The same model under an artifact with another threshold."""
    changed = copy(classifier)
    changed.artifact = replace(ARTIFACT, abstain_below=abstain_below)
    return changed


def test_an_answer_does_not_depend_on_its_batch(classifier: Classifier):
    """Texts of very different lengths get the scores in one batch, in order, that each gets alone."""
    texts = ["hi", "Translate to German: I am late because of the train. " * 12, "plan my week", "why is the sky blue"]
    tokens = classifier.tokenise(texts)

    together = classifier.forward(tokens)
    alone = [classifier.forward([one])[0] for one in tokens]

    for batched, single in zip(together, alone, strict=True):
        assert batched.intent == single.intent
        assert batched.scores == pytest.approx(single.scores, abs=1e-4)


def test_no_texts_give_no_predictions(classifier: Classifier):
    """An empty batch is answered without a forward pass."""
    assert classifier.forward([]) == []


def test_a_long_text_reports_its_whole_length(classifier: Classifier):
    """A text beyond the limit is cut to it, and the prediction says how long it was."""
    [tokens] = classifier.tokenise(["word " * 400])

    [prediction] = classifier.forward([tokens])

    assert len(tokens.ids) == ARTIFACT.max_tokens
    assert (prediction.tokens, prediction.truncated) == (402, True)


def test_the_head_and_the_tail_of_a_long_text_are_kept(tokeniser: Tokeniser, roomy: Tokeniser):
    """Of 40 tokens with room for 14 the first 7 and the last 7 stay, framed by [CLS] and [SEP]."""
    words = [f"{number}" for number in range(10, 50)]
    [whole] = roomy([" ".join(words)])

    [cut] = tokeniser([" ".join(words)])

    assert cut.ids == (CLS, *whole.ids[1:8], *whole.ids[-8:-1], SEP)
    assert (cut.count, cut.truncated, whole.truncated) == (42, True, False)


@given(length=st.integers(0, 40), limit=st.integers(0, 20))
def test_head_tail_keeps_exactly_the_limit_in_order(length: int, limit: int):
    """Never more than the limit, never fewer than there are, the head at most one longer than the tail."""
    ids = list(range(length))

    kept = list(head_tail(ids, limit))

    assert kept == sorted(set(kept))
    assert len(kept) == min(length, limit)
    assert set(ids[: min(length, limit) // 2]) <= set(kept)
    assert length == 0 or limit < 2 or kept[-1] == ids[-1]


def test_special_tokens_in_a_text_are_plain_text(tokeniser: Tokeniser):
    """A user who types [SEP] or [CLS] injects no special token."""
    [tokens] = tokeniser(["stop [SEP] [CLS] [MASK] go"])

    assert tokens.ids[1:-1].count(SEP) == 0
    assert tokens.ids[1:-1].count(CLS) == 0
    assert tokens.ids[1:-1].count(103) == 0


SPICE = st.sampled_from(
    ["[SEP]", "[Sep]", "\t", "\r\n", "  ", "İ", "ẞ", "ΟΔΟΣ", "é", "e\u0301", "中", "\u00a0", "\u200b"]
)


@settings(deadline=None, max_examples=300)
@given(text=st.lists(st.one_of(SPICE, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))).map("".join))
def test_texts_with_one_cache_key_have_one_list_of_tokens(roomy: Tokeniser, text: str):
    """A text and its normalised form share their token ids, whatever is in it."""
    [tokens, normalised] = roomy([text, normalise(text, ARTIFACT.normalisation)])

    assert tokens == normalised


def test_padding_is_masked():
    """Rows are padded to the longest, and the mask tells tokens from padding."""
    ids, mask = pad([Tokens((1, 2, 3), 3), Tokens((4,), 1)], pad_id=0)

    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_merged_adapter_is_w_plus_scaled_b_times_a():
    """By hand: W = I, A = [1 2], B = [3 4]ᵀ, alpha/r = 1/2 gives W + ½·[[3 6] [4 8]]."""
    layer = torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2)})
    layer["dense"].weight.data = torch.eye(2)
    weights = {"lora.dense.A": torch.tensor([[1.0, 2.0]]), "lora.dense.B": torch.tensor([[3.0], [4.0]])}

    merge_lora(layer, weights, scale=0.5)

    assert layer["dense"].weight.tolist() == [[2.5, 3.0], [2.0, 5.0]]


def test_merging_equals_the_training_librarys_own_merge():
    """Adapters merged by us and by peft give the same hidden states."""
    ids = torch.tensor([[CLS, 2054, 2003, SEP]])
    ours, wrapped = load_encoder(encoder()), add_adapters(load_encoder(encoder()), rank=4, alpha=8, dropout=0)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    plain = ours(ids).last_hidden_state

    merge_lora(ours, adapters_of(wrapped), scale=8 / 4)
    theirs = wrapped.merge_and_unload().eval()

    assert not torch.allclose(ours(ids).last_hidden_state, plain, atol=1e-2)
    assert torch.allclose(ours(ids).last_hidden_state, theirs(ids).last_hidden_state, atol=1e-5)


def test_another_encoder_is_refused_with_both_hashes():
    """An encoder with another hash than the artifact's is refused, naming both."""
    spec = EncoderSpec(ARTIFACT.encoder.source, "0" * 64)

    with pytest.raises(ArtifactError, match=f"{ARTIFACT.encoder.sha256}.*{spec.sha256}"):
        check_encoder(encoder(), spec)


@pytest.mark.parametrize("source", ["no_such_encoder", "./encoder"])
def test_an_encoder_that_is_not_there_is_named(tmp_path: Path, source: str):
    """A package that is not installed and a folder that does not exist are refused by name."""
    with pytest.raises(ArtifactError, match=source.removeprefix("./")):
        encoder_folder(EncoderSpec(source, "0" * 64), relative_to=tmp_path)


def test_an_encoder_may_lie_in_a_folder_beside_the_artifact(tmp_path: Path):
    """A relative source starts at the artifact's folder."""
    shutil.copytree(encoder(), tmp_path / "encoder", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")

    found = encoder_folder(EncoderSpec("./encoder", "0" * 64), relative_to=tmp_path)

    assert found == tmp_path / "encoder"


def test_weights_for_other_labels_are_refused():
    """A head with ten outputs does not serve nine labels."""
    fewer = replace(ARTIFACT, intents=ARTIFACT.intents[:9])

    with pytest.raises(ArtifactError, match="the intent head has 10 outputs for 9 labels"):
        Classifier.load(fewer)
