"""Imports point one way, and starting is light."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "essa_dist"

# A part may import parts of its own line and of the lines above it; those of one line must not form a ring.
LAYERS = [
    {
        "errors",
        "nearest",
        "settings",
        "progress",
        "runfolder",
        "disk",
        "parent",
        "kernels",
        "_torchvision",
        "distributed.collectives",
    },
    {"losses", "heads", "backbones", "data"},
    {"inference.sliding", "inference.overlay"},
    {"adapters"},
    {"objectives"},
    {"distributed"},
    {"tasks", "evaluation", "export"},
    {"engine"},
    {"planning.forecast"},
    {"finetune"},
    {"report"},
    {"planning"},
    {"engine.adapt"},
    {"packing"},
    {"config", "bench", "inference"},
    {"scaling"},
    {"demo", "doctor"},
    {"verbs"},
    {"reproduce"},
    {"tuning"},
    {"cli"},
    {"__main__"},
]
FACADE = "__init__"  # the package itself: offers the verbs, and everything may ask it for its version
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
HEAVY = ["torch", "torchvision", "timm", "numpy", "matplotlib", "sklearn", "deepspeed", "ray"]


def part_of(module: str) -> str:
    """The part that a module inside essa_dist belongs to: ``engine.train`` is of ``engine``."""
    names = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(names[:n])) in LEVEL), names[0])


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name inside essa_dist and syntax tree of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything of essa_dist that is imported anywhere in the file, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("essa_dist."):
                yield node.lineno, name.removeprefix("essa_dist.")


def imports() -> Iterator[tuple[str, str, str]]:
    """Importing part, imported part and where, for each import of one part by another."""
    for module, tree in modules():
        source = part_of(module)
        for line, name in imported(tree):
            target = part_of(name)
            if source != target and {source, target} <= LEVEL.keys():
                yield source, target, f"{module}:{line} imports {name}"


def test_every_part_has_its_place() -> None:
    parts = {part_of(module) for module, _ in modules()} - {FACADE}
    assert parts - LEVEL.keys() == set(), "give these a line in LAYERS"


def test_nothing_imports_what_stands_higher() -> None:
    offenders = [where for source, target, where in imports() if LEVEL[source] < LEVEL[target]]
    assert offenders == []


def test_parts_of_one_layer_form_no_ring() -> None:
    graph: dict[str, set[str]] = {}
    for source, target, _ in imports():
        graph.setdefault(source, set()).add(target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the ring


def test_no_module_uses_a_relative_import() -> None:
    relative = [
        f"{module}:{node.lineno}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("module", ["essa_dist", "essa_dist.cli"])
def test_starting_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_processes_of_a_pack_start_without_torch() -> None:
    code = "import sys, essa_dist.packing.workers; print([n for n in ('torch', 'matplotlib', 'pandas') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == "[]"
