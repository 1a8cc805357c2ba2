"""Imports point down: the layers of the package, and what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tools.imports import SRC, module_file

PACKAGE = SRC / "fewstep"
LAYERS = (
    ("core",),
    ("diffusion", "artifacts", "measures"),
    ("config",),
    ("sources", "data"),
    ("preparation", "backbones"),
    ("features", "training"),
    ("losses", "sampling", "compression"),
    ("pretraining", "students"),
    ("methods", "evaluation"),
    ("export", "chain"),
    ("report", "checks"),
    ("cli", "preload"),
)
"""From the lowest; packages of one layer do not import each other."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file: Path) -> set[str]:
    """Packages of ours that a module imports, wherever in it the import stands."""
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            module = module_file(name)
            if module is not None and module != PACKAGE / "__init__.py":
                packages.add(package_of(module))
    return packages


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_point_down(file: Path) -> None:
    package = package_of(file)
    above = {other for other in imported_modules(file) - {package} if LEVEL[other] >= LEVEL[package]}
    assert not above, f"{package} is below {', '.join(sorted(above))}, or beside it"


def test_methods_holds_methods_alone() -> None:
    for file in (PACKAGE / "methods").glob("*.py"):
        text = file.read_text()
        assert file.stem == "__init__" or ("\nclass Config(" in text and "\nMETHOD = " in text), file.name


def test_nobody_but_the_chain_imports_a_method() -> None:
    """Methods are found by name; sections of their own (`reflow`, `compress` ...) have a type each."""
    importers = {package_of(file) for file in FILES if "methods" in imported_modules(file)}
    assert importers <= {"methods", "chain"}


def test_flows_load_no_torch_and_reading_the_chains_parameters_no_library_of_models() -> None:
    """Such a library takes longer to load than all else that a worker's flow or `fewstep check` loads."""
    heavy = ("diffusers", "transformers", "peft", "torchvision")
    code = f"""
import sys, flows.ablation, flows.cluster
print([name for name in ("torch", *{heavy}) if name in sys.modules])
import fewstep.chain
print([name for name in {heavy} if name in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=SRC.parent, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == ["[]", "[]"]
