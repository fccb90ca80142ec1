"""The bare forward pass: `python -m loadgen.model`.

What the model computes when nothing stands before it: no HTTP, no queue, one batch after the other. It is what dynamic
batching is measured by (`loadgen.batching`), and it is held against the matrix peak of the same process.

The only module of this package that imports from `deployments`, and only where the model is loaded. Everything else
measures what anybody could over public interfaces; a forward pass has none, and one written anew here would be the
measure of another model.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from loadgen.cli import built, clear_errors, examples, run_app
from loadgen.load import LoadError
from loadgen.machine import machine, versions
from loadgen.report import Machine
from loadgen.terminal import print_line, print_table
from loadgen.texts import read_corpus

if TYPE_CHECKING:
    from deployments.core.artifact import Artifact
    from deployments.core.classifier import Classifier, Tokens
    from deployments.core.runtimes import Way

Device = Literal["cpu", "cuda"]
MIN_ROUNDS = 3
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices for the peak: large enough that nothing but the multiplication counts."""
PEAK_S = 2.0
TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of an encoder decides its arithmetic."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def read(cls, config: Path) -> Self:
        """Of an encoder's `config.json`, as BERT names them."""
        found = json.loads(config.read_text(encoding="utf-8"))
        return cls(found["num_hidden_layers"], found["hidden_size"], found["intermediate_size"])

    def flop(self, batch: int, length: int) -> int:
        """Operations of one forward pass over `batch` × `length` tokens, padding included.

        For each token and layer two for each weight of its linear layers (4 hidden² of the attention, 2 hidden ×
        intermediate of the rest), and 4 × length × hidden for the scores and the sum they weigh. Embeddings, norms and
        heads are left out: under 1 %.
        """
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return batch * length * self.layers * (2 * weights + 4 * length * self.hidden)


class Plan(BaseModel):
    """What is measured, and with how many threads (all cores when None)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = "cpu"
    runtimes: tuple[Literal["onnx", "torch"], ...] = ()
    precisions: tuple[Literal["fp32", "fp16", "bf16", "int8"], ...] = ()
    threads: int | None = None
    batches: tuple[int, ...] = (1, 8, 32, 64)
    lengths: tuple[int, ...] = (16, 64, 256)
    artifact: Path | None = None
    texts: Path | None = None
    seconds: float = 1.0


class Pass(BaseModel):
    """One batch size at one length: the median of the rounds. `length` is a mean of real texts'."""

    runtime: str
    batch: int
    length: float
    ms: float
    texts_per_s: float
    gflop_per_s: float
    share_of_peak: float | None


class Forward(BaseModel):
    """Everything that was measured; `peaks` in GFLOP/s by precision."""

    machine: Machine
    versions: dict[str, str]
    plan: Plan
    peaks: dict[str, float]
    passes: list[Pass]


Batches = list[list["Tokens"]]


def run_plan(plan: Plan, tell: Callable[[str], object]) -> Forward:
    """Measure every way to compute that the plan asks for, one after the other.

    Raises:
        LoadError: there is no such way on this machine, or the model cannot be loaded.
        ValueError: a length is over the model's limit, or the texts cannot be read.
    """
    artifact, sizes, ways = _model(plan)
    peaks: dict[str, float] = {}
    passes: list[Pass] = []
    for way in ways:
        classifier = _loaded(artifact, way, plan)  # before the peak: its errors are the clear ones
        if plan.texts is None and way[1] not in peaks:
            peaks[way[1]] = matrix_peak(way[1], plan.device, plan.threads)
            tell(f"matrix peak, {way[1]}: {peaks[way[1]]:,.0f} GFLOP/s")
        for batch, batches in _workloads(plan, classifier):
            passes.append(_measured(classifier, batch, batches, sizes, peaks.get(way[1]), plan.seconds))
            tell(_line(passes[-1]))
    return Forward(machine=machine(), versions=versions(), plan=plan, peaks=peaks, passes=passes)


def _model(plan: Plan) -> tuple["Artifact", Sizes, list["Way"]]:
    from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
    from deployments.core.encoder import encoder_folder
    from deployments.core.errors import StartupError
    from deployments.core.runtimes import WAYS

    try:
        artifact = Artifact.load(plan.artifact or DEFAULT_ARTIFACT)
        folder = encoder_folder(artifact.encoder, relative_to=artifact.folder)
    except StartupError as error:
        raise LoadError(str(error)) from None
    ways = chosen_ways(WAYS[plan.device], plan)
    if longest := max((each for each in plan.lengths if each > artifact.max_tokens and plan.texts is None), default=0):
        raise ValueError(f"length is {longest}; the model reads at most {artifact.max_tokens} tokens")
    return artifact, Sizes.read(folder / "config.json"), ways


def chosen_ways(known: Sequence["Way"], plan: Plan) -> list["Way"]:
    """The ways a plan asks for; bf16 on a CPU only by name, for where it is emulated it is some 50 times slower.

    Raises:
        LoadError: there is none.
    """
    ways = [
        (runtime, precision)
        for runtime, precision in known
        if runtime in (plan.runtimes or (runtime,))
        and precision in (plan.precisions or (precision,))
        and (precision != "bf16" or plan.device == "cuda" or plan.precisions)
    ]
    if not ways:
        there = ", ".join(" ".join(way) for way in known)
        raise LoadError(f"nothing computes that on {plan.device}; there are {there}")
    return ways


def _loaded(artifact: "Artifact", way: "Way", plan: Plan) -> "Classifier":
    from deployments.core.classifier import Classifier
    from deployments.core.errors import StartupError

    try:
        return Classifier.load(artifact, place=plan.device, runtime=way[0], precision=way[1], threads=plan.threads)
    except StartupError as error:
        raise LoadError(str(error)) from None


def _workloads(plan: Plan, classifier: "Classifier") -> Iterator[tuple[int, Batches]]:
    """Batch size and what is computed in one round: one batch of equal lengths, or all texts in batches."""
    if plan.texts:
        tokens = classifier.tokenise(read_corpus(plan.texts))
        yield from ((batch, batched(tokens, batch)) for batch in plan.batches)
        return
    for length, batch in itertools.product(plan.lengths, plan.batches):
        (tokens_of_length,) = classifier.tokenise([" ".join(["warm"] * (length - 2))])
        yield batch, [[tokens_of_length] * batch]


def batched(tokens: Sequence["Tokens"], batch: int) -> Batches:
    """All texts in batches of neighbours in length: the least padding there can be."""
    ordered = sorted(tokens, key=lambda each: len(each.ids))
    return [list(ordered[start : start + batch]) for start in range(0, len(ordered), batch)]


def _measured(
    classifier: "Classifier", batch: int, batches: Batches, sizes: Sizes, peak: float | None, seconds: float
) -> Pass:
    def compute() -> None:
        for each in batches:
            classifier.forward(each)

    round_s = statistics.median(rounds(compute, seconds))
    lengths = [len(tokens.ids) for each in batches for tokens in each]
    flop = sum(sizes.flop(len(each), max(len(tokens.ids) for tokens in each)) for each in batches)
    gflop_per_s = flop / round_s / GIGA
    return Pass(
        runtime=classifier.runtime.name,
        batch=batch,
        length=statistics.fmean(lengths),
        ms=1000 * round_s / len(batches),
        texts_per_s=len(lengths) / round_s,
        gflop_per_s=gflop_per_s,
        share_of_peak=gflop_per_s / peak if peak else None,
    )


def rounds(compute: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, after a first one that pays for allocations: so many as fit, three at least."""
    compute()
    spent_s: list[float] = []
    while len(spent_s) < MIN_ROUNDS or sum(spent_s) < seconds:
        started_s = time.perf_counter()
        compute()
        spent_s.append(time.perf_counter() - started_s)
    return spent_s


def matrix_peak(precision: str, device: Device, threads: int | None) -> float:
    """GFLOP/s of a large matrix product in a precision, the best of some: torch's, and of int8 ONNX Runtime's."""
    size = PEAK_SIZE[device]
    multiply = _int8_product(size, threads) if precision == "int8" else _torch_product(size, precision, device, threads)
    return 2 * size**3 / min(rounds(multiply, PEAK_S)) / GIGA


def _torch_product(size: int, precision: str, device: Device, threads: int | None) -> Callable[[], object]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    matrix = torch.ones((size, size), dtype=getattr(torch, TORCH_NAMES[precision]), device=device)

    def multiply() -> object:
        product = matrix @ matrix
        return product[0, 0].item()  # waits for a GPU

    return multiply


def _int8_product(size: int, threads: int | None) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper

    shape = (size, size)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, shape)],
        [helper.make_tensor("b", TensorProto.INT8, shape, np.ones(shape, np.int8).tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or machine().cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": np.ones(shape, np.uint8)})


def _line(done: Pass) -> str:
    return f"{done.runtime}, {done.batch} × {done.length:.0f} tokens: {done.texts_per_s:,.0f} texts/s"


HEAD = ("runtime", "batch", "tokens", "ms a batch", "texts/s", "GFLOP/s", "of the peak")


def render(found: Forward, console: Console) -> None:
    """Print the table."""
    cores = found.plan.threads or found.machine.cores
    where = f"{found.machine.processor}, {cores} threads" if found.plan.device == "cpu" else found.plan.device
    peaks = ", ".join(f"{precision} {peak:,.0f} GFLOP/s" for precision, peak in found.peaks.items())
    print_line(console, f"{where}; matrix peak: {peaks or 'not measured'}")
    print_table(console, HEAD, [_row(each) for each in found.passes])


def _row(done: Pass) -> tuple[str, ...]:
    return (
        done.runtime,
        str(done.batch),
        f"{done.length:.0f}",
        f"{done.ms:,.1f}",
        f"{done.texts_per_s:,.0f}",
        f"{done.gflop_per_s:,.0f}",
        "-" if done.share_of_peak is None else f"{done.share_of_peak:.0%}",
    )


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.model",
        "python -m loadgen.model --device cuda",
        "python -m loadgen.model --runtime onnx --precision fp32,int8 --threads 1 --batch 1,32 --length 16",
        "python -m loadgen.model --runtime onnx --precision fp32 --batch 32 --texts prompts.jsonl --json",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="onnx or torch, with commas; all when absent.")] = "",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16 or int8, with commas; all but bf16 on a CPU when absent.")
    ] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a forward pass on a CPU; all when absent.")] = None,
    batch: Annotated[str, typer.Option(help="Texts in a batch, with commas.")] = "1,8,32,64",
    length: Annotated[str, typer.Option(help="Tokens of every text, with commas.")] = "16,64,256",
    texts: Annotated[
        Path | None, typer.Option(help="Real texts instead, batched by length: JSONL with `text`, or plain lines.")
    ] = None,
    artifact: Annotated[Path | None, typer.Option(help="Folder of the artifact; the shipped one when absent.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Measured for each line, three batches at least.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the bare forward pass: batch × length × precision, in texts/s and as a share of the matrix peak."""
    with clear_errors():
        plan: Plan = built(
            Plan,
            device=device,
            runtimes=names(runtime),
            precisions=names(precision),
            threads=threads,
            batches=whole_numbers(batch, "batch"),
            lengths=whole_numbers(length, "length", least=3),
            artifact=artifact,
            texts=texts,
            seconds=seconds,
        )
        found = run_plan(plan, lambda line: sys.stderr.write(f"{line}\n"))
        if as_json:
            sys.stdout.write(f"{found.model_dump_json(indent=1)}\n")
        else:
            render(found, Console())


def names(given: str) -> tuple[Any, ...]:
    """`a,b` as its parts; none of an empty string."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def whole_numbers(given: str, name: str, least: int = 1) -> tuple[int, ...]:
    """`1,8` as numbers.

    Raises:
        ValueError: not such a list.
    """
    try:
        numbers = tuple(int(part) for part in given.split(","))
    except ValueError:
        raise ValueError(f"{name} is {given!r}; give whole numbers with commas, such as 1,8,32") from None
    if min(numbers) < least:
        raise ValueError(f"{name} is {given!r}; the least is {least}")
    return numbers


if __name__ == "__main__":
    run_app(app, "python -m loadgen.model")
