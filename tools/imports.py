"""The import graph of a stage script, read from the source text."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"


def module_file(name: str) -> Path | None:
    """The file of a module of this project, None for any other module."""
    path = SRC.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imported(file: Path) -> tuple[Path, ...]:
    """Files of this project that `file` imports, at any depth of its code. Each file is parsed once."""
    return tuple(imports(file))


def imports(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            target = module_file(name)
            if target is not None and target != file:
                yield target


@cache
def is_empty_package(file: Path) -> bool:
    """Whether the file is an `__init__.py` with a docstring at most, which can change no result."""
    body = ast.parse(file.read_text()).body
    return file.name == "__init__.py" and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body
    )


def closure(*files: Path) -> set[Path]:
    """The files and all that they import, transitively, without empty `__init__.py` files."""
    seen: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imported(file)
    return {file for file in seen if not is_empty_package(file)}
