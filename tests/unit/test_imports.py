"""What may be imported where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = [
    f"deployments.{path.parent.name}.{path.stem}"
    for folder in ("core", "http")
    for path in sorted((ROOT / "deployments" / folder).glob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("package", ["core", "http"])
def test_core_and_http_never_import_ray_and_core_never_starlette(package: str):
    """Every module of theirs, in a fresh interpreter; heavy libraries are loaded where they are used."""
    modules = [module for module in CORE if module.startswith(f"deployments.{package}.")]
    forbidden = {"ray", "torch", "transformers", "redis", "peft"} | ({"starlette"} if package == "core" else set())
    code = f"import sys, {', '.join(modules)}; print(sorted({forbidden!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_shells_never_import_each_other():
    """Only the graph knows them all."""
    shells = ("ingress", "cache", "model", "feedback")
    for shell in shells:
        source = (ROOT / "deployments" / f"{shell}.py").read_text()
        others = [other for other in shells if other != shell and f"deployments.{other} import" in source]

        assert others == []


def test_only_the_graph_binds():
    """One file shows how the deployments hang together."""
    sources = (ROOT / "deployments").rglob("*.py")

    assert [path.name for path in sources if "serve.deployment(" in path.read_text()] == ["graph.py"]


def test_the_load_generator_knows_nothing_of_the_service():
    """It measures what anybody could: no module imports `deployments`, not even where it is used, but one.

    `loadgen.model` measures our forward pass without a service, in a process of its own: there is no public interface
    to it, and another implementation would be another model. It imports nothing of it until it runs.
    """
    sources = [path.name for path in (ROOT / "loadgen").rglob("*.py") if "deployments" in _imported(path)]
    code = "import sys, loadgen.model; print([name for name in sys.modules if name.startswith('deployments')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert sources == ["model.py"]
    assert result.stdout.strip() == "[]"


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}
