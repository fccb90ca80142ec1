"""The forward pass: every way to compute it keeps to the reference, and the one asked for is the one loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from deployments.core import onnx_export, speed_trial
from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from deployments.core.classifier import Classifier, pad, softmax
from deployments.core.encoder import load_network
from deployments.core.errors import StartupError
from deployments.core.runtimes import AUTOMATIC, WAYS, Way, _ways, load_runtime, load_way
from deployments.core.torch_runtime import TorchRuntime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deployments.core.classifier import Tokens
    from deployments.core.runtimes import Place, Precision, RuntimeName

pytestmark = pytest.mark.usefixtures("one_thread")

ARTIFACT = Artifact.load(DEFAULT_ARTIFACT)
PROMPTS = DEFAULT_ARTIFACT.parents[1] / "training" / "prompts.jsonl"
COMPARED = 1000
BATCH = 32
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(scope="module")
def reference() -> Classifier:
    """The shipped model as torch computes it in fp32."""
    return Classifier.load(ARTIFACT)


@pytest.fixture(scope="module")
def prompts(reference: Classifier) -> list[Tokens]:
    """Held-out prompts of the repository, the shortest ones, by length."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    tokens = reference.tokenise([row["text"] for row in rows if row.get("split") == "test"])
    return sorted(tokens, key=lambda each: len(each.ids))[:COMPARED]


@pytest.fixture(scope="module")
def expected(reference: Classifier, prompts: list[Tokens]) -> NDArray[np.float64]:
    """The reference's probabilities."""
    return probabilities(reference, prompts)


def probabilities(classifier: Classifier, prompts: list[Tokens]) -> NDArray[np.float64]:
    """Each prompt's `[prompts, intents]`, in batches of near lengths."""
    parts = [classifier.logits(prompts[start : start + BATCH])[0] for start in range(0, len(prompts), BATCH)]
    return softmax(np.concatenate(parts) / ARTIFACT.temperature)


@pytest.mark.parametrize(("precision", "margin"), [("fp32", 0.02), ("int8", 0.1)])
def test_labels_with_onnx_are_those_of_the_reference(
    precision: Precision, margin: float, prompts: list[Tokens], expected: NDArray[np.float64]
):
    """On a thousand prompts; int8 may decide otherwise what is less close, so `auto` does not take it."""
    found = probabilities(Classifier.load(ARTIFACT, runtime="onnx", precision=precision, threads=1), prompts)

    assert_same_labels(found, expected, margin=margin)


def test_labels_in_fp16_are_those_of_the_reference(prompts: list[Tokens], expected: NDArray[np.float64]):
    """As CUDA computes them: weights and every layer's output rounded, sums in fp32."""
    classifier = Classifier.load(ARTIFACT)
    round_to(torch.float16, classifier.runtime._network.encoder)  # type: ignore[attr-defined]

    assert_same_labels(probabilities(classifier, prompts), expected, margin=0.02)


@NEEDS_GPU
@pytest.mark.parametrize(("precision", "margin"), [("fp16", 0.02), ("bf16", 0.1), ("fp32", 0.02)])
def test_labels_on_cuda_are_those_of_the_reference(
    precision: Precision, margin: float, prompts: list[Tokens], expected: NDArray[np.float64]
):
    """On a GPU, where there is one; bf16 may decide otherwise what is less close, so `auto` does not take it."""
    classifier = Classifier.load(ARTIFACT, place="cuda", precision=precision)

    assert_same_labels(probabilities(classifier, prompts), expected, margin=margin)


def round_to(dtype: torch.dtype, network: torch.nn.Module) -> None:
    """Make a network compute as if its weights and what its layers give were kept in `dtype`."""
    for parameter in network.parameters():
        parameter.data = parameter.to(dtype).float()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm):
            layer.register_forward_hook(lambda _layer, _inputs, output: output.to(dtype).float())


def assert_same_labels(found: NDArray[np.float64], expected: NDArray[np.float64], *, margin: float) -> None:
    """At most 1 % have another label, and only where the two best of `expected` are within `margin`."""
    others = found.argmax(axis=1) != expected.argmax(axis=1)
    second, first = np.sort(expected[others], axis=1)[:, -2:].T

    assert len(found) == COMPARED
    assert not np.array_equal(found, expected)  # it was really computed in another way
    assert others.mean() <= 0.01
    assert (first - second).max(initial=0) < margin


@pytest.mark.parametrize(("runtime", "place"), [("onnx", "cpu"), pytest.param("torch", "cuda", marks=NEEDS_GPU)])
def test_fp32_gives_the_references_probabilities(
    runtime: RuntimeName, place: Place, prompts: list[Tokens], expected: NDArray[np.float64]
):
    """To 1e-4, and whatever else is in the batch: alone, and beside the longest."""
    classifier = Classifier.load(ARTIFACT, place=place, runtime=runtime, precision="fp32", threads=1)
    chosen = [0, COMPARED // 2, COMPARED - 1]

    alone = np.concatenate([probabilities(classifier, [prompts[index]]) for index in chosen])
    together = probabilities(classifier, [prompts[index] for index in chosen])

    assert alone == pytest.approx(expected[chosen], abs=1e-4)
    assert together == pytest.approx(expected[chosen], abs=1e-4)


def test_int8_does_not_depend_on_the_batch(prompts: list[Tokens]):
    """Its scales belong to a text's own rows: plain dynamic quantisation would share one over the batch."""
    classifier = Classifier.load(ARTIFACT, runtime="onnx", precision="int8", threads=1)
    chosen = [prompts[index] for index in (0, COMPARED // 2, COMPARED - 1)]

    alone = np.concatenate([probabilities(classifier, [tokens]) for tokens in chosen])

    assert probabilities(classifier, chosen) == pytest.approx(alone, abs=1e-4)


def test_padding_to_a_bucket_changes_no_answer(prompts: list[Tokens], reference: Classifier):
    """What CUDA does with lengths, on the CPU: rounded up to a bucket, but never beyond the longest text."""
    bucketed = TorchRuntime(
        load_network(ARTIFACT), torch.device("cpu"), name="bucketed", length_bucket=96, max_tokens=ARTIFACT.max_tokens
    )
    ids, mask = pad(prompts[400:404], pad_id=0)
    shapes: list[torch.Size] = []
    bucketed._network.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))

    assert bucketed(ids, mask) == pytest.approx(reference.runtime(ids, mask), abs=1e-4)
    assert shapes == [(4, 96)]


@pytest.mark.parametrize(("length", "bucketed"), [(16, 16), (17, 32), (250, 255), (255, 255)])
def test_a_length_is_rounded_up_to_its_bucket(length: int, bucketed: int):
    """Of 16 tokens each, with 255 as the longest text."""
    network = torch.nn.Identity()
    runtime = TorchRuntime(network, torch.device("cpu"), name="none", length_bucket=16, max_tokens=255)
    runtime._network = lambda ids, mask: torch.stack([ids, mask])  # type: ignore[assignment]

    ids, mask = runtime(np.ones((2, length), np.int64), np.ones((2, length), np.int64))

    assert ids.shape == mask.shape == (2, bucketed)
    assert mask.sum() == 2 * length


def test_the_cost_of_a_pass_is_measured(reference: Classifier):
    """A pass that takes 20 ms and a tenth for each token: its overhead is 200 tokens."""

    class Sleeps:
        name = "sleeps"

        def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
            time.sleep(0.02 + 0.0001 * ids.size)
            return np.zeros((len(ids), len(ARTIFACT.intents) + len(ARTIFACT.complexity_levels)), np.float32)

    cost = Classifier(ARTIFACT, reference._tokeniser, Sleeps()).warm_up()

    assert cost.overhead_tokens == pytest.approx(200, rel=0.3)
    assert cost.tokens_per_s == pytest.approx(10_000, rel=0.3)


def test_a_device_that_is_not_there_is_said():
    """In words, not as torch's stack: the replica's status shows them."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(StartupError, match="device is cuda and torch sees none"):
        load_runtime(ARTIFACT, place="cuda")


@pytest.mark.parametrize(
    ("runtime", "precision", "ways"),
    [
        ("onnx", "fp32", {("onnx", "fp32")}),
        ("auto", "int8", {("onnx", "int8")}),
        ("auto", "bf16", {("torch", "bf16")}),
        ("auto", "fp32", {("onnx", "fp32"), ("torch", "fp32")}),
        ("onnx", "auto", {("onnx", "fp32")}),
        ("auto", "auto", {("onnx", "fp32"), ("torch", "fp32")}),
    ],
)
def test_what_is_asked_for_narrows_what_may_be_taken(runtime: RuntimeName, precision: Precision, ways: set[Way]):
    """On a CPU; bf16 and int8 are never taken unasked."""
    assert set(_ways("cpu", runtime, precision)) == ways


def test_cuda_computes_in_fp16_unless_asked_otherwise():
    """One way, so nothing is tried at start."""
    assert _ways("cuda", "auto", "auto") == (("torch", "fp16"),)
    assert _ways("cuda", "torch", "bf16") == (("torch", "bf16"),)


def test_a_combination_that_does_not_exist_names_those_that_do():
    """CUDA has no ONNX Runtime here."""
    with pytest.raises(StartupError, match=r"'onnx'.*'int8' on cuda; there are: torch fp16, torch bf16, torch fp32"):
        _ways("cuda", "onnx", "int8")


def test_a_processor_is_known_by_its_flags(tmp_path: Path):
    """In the kernel's words, on x86 and Arm; an unreadable file says nothing."""
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx2\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd\n")

    assert speed_trial.processor_flags(tmp_path / "x86") == {"fpu", "avx2"}
    assert speed_trial.processor_flags(tmp_path / "arm") == {"fp", "asimd"}
    assert speed_trial.processor_flags(tmp_path / "none") == frozenset()


def test_the_export_is_made_once_and_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Other weights or another library are another export; a found one is not made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[tuple[str, ...]] = []

    def make(_module: str, *arguments: str) -> None:
        made.append(arguments)
        Path(arguments[1]).mkdir()
        (Path(arguments[1]) / "fp32.onnx").write_bytes(b"")

    monkeypatch.setattr(onnx_export, "run_apart", make)

    first, again = (onnx_export.exported(ARTIFACT, "fp32") for _ in range(2))
    monkeypatch.setattr(onnx_export, "version", lambda name: f"another {name}")
    other = onnx_export.exported(ARTIFACT, "fp32")

    assert first == again != other
    assert len(made) == 2


def test_a_failed_export_says_why_and_what_serves_without_it():
    """The last line of the process that failed."""
    with pytest.raises(StartupError, match=r"/no/such/artifact.*`runtime: torch` serves without it"):
        onnx_export.run_apart("deployments.core.onnx_export", "/no/such/artifact", "/tmp/nowhere")


def test_a_draft_takes_its_place_at_once_or_not_at_all(tmp_path: Path):
    """A process that fails in the middle leaves neither half a file nor its draft."""
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "model", "half", fails=True)
    assert list(tmp_path.iterdir()) == []

    write(tmp_path / "model", "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def write(path: Path, content: str, *, fails: bool = False) -> None:
    """Write a file through a draft; `fails` in the middle of it."""
    with onnx_export.replacing(path) as draft:
        draft.write_text(content)
        if fails:
            raise OSError("disk full")


def test_the_trial_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its times are kept for the next start, by the number of threads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held: list[str] = []

    def hold(_module: str, _folder: str, path: str, threads: str) -> None:
        held.append(threads)
        Path(path).write_text('{"onnx fp32": 0.5}')

    monkeypatch.setattr(speed_trial, "run_apart", hold)

    times = [speed_trial.pass_times(ARTIFACT, threads=threads) for threads in (1, 1, 2)]

    assert times == [{"onnx fp32": 0.5}] * 3
    assert held == ["1", "2"]


def test_a_trial_times_each_way_that_may_be_taken(monkeypatch: pytest.MonkeyPatch):
    """In processor seconds of a pass."""
    monkeypatch.setattr(speed_trial, "SHAPES", ((1, 16),))
    monkeypatch.setattr(speed_trial, "ROUNDS", 1)

    times_s = speed_trial.trial(ARTIFACT, threads=1)

    assert set(times_s) == {" ".join(way) for way in AUTOMATIC["cpu"]}
    assert all(spent_s > 0 for spent_s in times_s.values())


def test_in_a_trial_a_lone_text_counts_as_much_as_a_batch(monkeypatch: pytest.MonkeyPatch):
    """A way three times as fast for one text and a fifth slower for many is the better one."""
    times_s = {("one", (1, 16)): 0.004, ("one", (32, 16)): 0.120, ("other", (1, 16)): 0.012, ("other", (32, 16)): 0.100}
    monkeypatch.setattr(speed_trial, "SHAPES", ((1, 16), (32, 16)))
    monkeypatch.setattr(speed_trial, "AUTOMATIC", {"cpu": ("one", "other")})
    monkeypatch.setattr(speed_trial, "load_way", lambda _artifact, way, **_: SimpleNamespace(name=way))
    monkeypatch.setattr(speed_trial, "_pass_s", lambda runtime, shape: times_s[runtime.name, shape])

    found = speed_trial.trial(ARTIFACT, threads=1)

    assert found == pytest.approx({"one": (0.004 * 0.120) ** 0.5, "other": (0.012 * 0.100) ** 0.5})


def test_every_way_has_a_name_of_its_own():
    """The metric's label and the log tell which one serves."""
    loaded = [load_way(ARTIFACT, way, place="cpu", threads=1).name for way in WAYS["cpu"]]

    assert loaded == [" ".join(way) for way in WAYS["cpu"]]
