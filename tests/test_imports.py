"""The layers: who may import whom, read off the syntax trees of all source files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("envs", "agents", "llm", "experiments")

# layer -> the layers that its files may import
ALLOWED = {
    "envs": {"envs"},
    "agents": {"agents"},
    "llm": {"llm", "agents"},
    "experiments": set(LAYERS),
}

# heavy module -> the only files that may import it
CONFINED = {
    "vllm": {"llm/engine_vllm.py"},
    "transformers": {"llm/policy.py", "llm/engine_hf.py", "llm/tokenizer.py"},
    "torch.distributed": {"llm/fsdp.py"},
    "peft": {"llm/lora.py"},
}

SIMULATORS = ("mujoco", "Box2D", "envpool")


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """Yield every absolute module name that the file asks for, with its line; `from a import b` counts as a and a.b."""
    package = ["sppo", *Path(path).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base, node.lineno
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # torch.distributed.all_reduce(...) needs no import statement of its own
            if (node.value.id, node.attr) == ("torch", "distributed"):
                yield "torch.distributed", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def run_on_import(tree: ast.Module) -> ast.Module:
    """The file without the bodies of its functions: what its import runs."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
            return ast.copy_location(ast.Pass(), node)

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.stmt:
            return ast.copy_location(ast.Pass(), node)

    return ast.fix_missing_locations(Strip().visit(tree))


def offences(source: str, path: str) -> list[str]:
    """What in this source, lying at `path` from the top of the tree, breaks the layering; one line each."""
    layer = Path(path).parts[0]
    tree = ast.parse(source)
    found = []
    for module, line in imports(tree, path):
        where = f"{path}:{line}"
        parts = module.split(".")
        if parts[0] in LAYERS:
            found.append(f"{where}: import sppo.{module}, not {module}")
        if parts[0] == "sppo" and len(parts) > 1 and parts[1] in LAYERS and parts[1] not in ALLOWED[layer]:
            found.append(f"{where}: {layer} may not import sppo.{parts[1]}")
        for heavy, files in CONFINED.items():
            if is_in(module, heavy) and path not in files:
                found.append(f"{where}: {heavy} belongs in {', '.join(sorted(files))}")
    if path == "envs/__init__.py":
        for module, line in imports(run_on_import(tree), path):
            if any(is_in(module, simulator) for simulator in SIMULATORS):
                found.append(f"{path}:{line}: importing sppo.envs must not load {module}")
    return list(dict.fromkeys(found))


def test_tree_keeps_the_layers() -> None:
    files = [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]
    assert len(files) > len(LAYERS)
    found = [line for f in files for line in offences(f.read_text("utf-8"), f.relative_to(ROOT).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("envs/a.py", "from sppo.agents import SPPO", "envs may not import sppo.agents"),
        ("envs/a.py", "from ..agents.batch import Trajectories", "envs may not import sppo.agents"),
        ("envs/sub/a.py", "from ... import agents", "envs may not import sppo.agents"),
        ("envs/a.py", "from sppo import experiments", "envs may not import sppo.experiments"),
        ("agents/a.py", "import sppo.envs.classic as c", "agents may not import sppo.envs"),
        ("agents/a.py", "def f():\n    from sppo.llm import x", "agents may not import sppo.llm"),
        ("agents/a.py", "if TYPE_CHECKING:\n    import sppo.experiments", "agents may not import sppo.experiments"),
        ("agents/a.py", "import importlib\nimportlib.import_module('sppo.envs')", "agents may not import sppo.envs"),
        ("llm/a.py", "from sppo.envs import x", "llm may not import sppo.envs"),
        ("llm/a.py", "from sppo.experiments.stats import x", "llm may not import sppo.experiments"),
        ("experiments/a.py", "from agents import SPPO", "import sppo.agents, not agents"),
        ("llm/sampler.py", "import vllm", "vllm belongs in llm/engine_vllm.py"),
        ("experiments/a.py", "def f():\n    from vllm.engine import x", "vllm belongs in"),
        ("llm/sampler.py", "from transformers import AutoModel", "transformers belongs in"),
        ("llm/policy.py", "from peft import LoraConfig", "peft belongs in llm/lora.py"),
        ("agents/update.py", "import torch.distributed as dist", "torch.distributed belongs in llm/fsdp.py"),
        ("agents/update.py", "from torch import distributed", "torch.distributed belongs in"),
        ("agents/update.py", "import torch\ntorch.distributed.all_reduce(x)", "torch.distributed belongs in"),
        ("agents/update.py", "from torch.distributed.fsdp import x", "torch.distributed belongs in"),
        ("envs/__init__.py", "import mujoco", "must not load mujoco"),
        ("envs/__init__.py", "try:\n    from Box2D import b2World\nexcept ImportError: ...", "must not load Box2D"),
        ("envs/__init__.py", "class A:\n    import mujoco.rollout", "must not load mujoco"),
    ],
)
def test_offence_is_told(path: str, source: str, told: str) -> None:
    assert any(told in line for line in offences(source, path)), offences(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("envs/a.py", "from .classic import x\nfrom sppo.envs import y\nimport mujoco"),
        ("envs/__init__.py", "def make():\n    import mujoco\n    return mujoco"),
        ("agents/a.py", "from . import credit\nfrom ..agents.batch import Trajectories\nimport torch"),
        ("llm/a.py", "from sppo.agents import SPPO"),
        ("llm/engine_vllm.py", "import vllm"),
        ("llm/policy.py", "import transformers"),
        ("llm/fsdp.py", "import torch.distributed as dist\ndist.barrier()"),
        ("experiments/a.py", "from sppo.llm import x\nfrom sppo.envs import y\nimport vllm_like_name"),
    ],
)
def test_allowed_import_passes(path: str, source: str) -> None:
    assert offences(source, path) == []


def test_importing_the_envs_loads_no_simulator(tmp_path: Path) -> None:
    """The same rule as a fact: also what envs/__init__.py pulls in through other files stays light."""
    code = f"import sys, sppo.envs; print([m for m in {SIMULATORS + ('torch',)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
