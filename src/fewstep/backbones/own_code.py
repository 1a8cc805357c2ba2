"""Copies a user's module and its imports from the same package, which are found by parsing the code."""

import ast
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from fewstep.core.errors import UserError


def collect(factory: str, folder: Path) -> None:
    """Copy the modules that `package.module:factory` needs into `folder`, in their package's layout.

    Raises UserError when there is no such module.
    """
    for name, file in own_modules(factory.partition(":")[0]).items():
        package = folder.joinpath(*name.split("."))
        copy = package / file.name if file.name == "__init__.py" else package.with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def own_modules(module: str) -> dict[str, Path]:
    """Name -> file of the module and, recursively, of its imports from its top-level package.

    The working folder is searched first, then the installed packages. A package may lack its `__init__.py`; a
    package that has one is imported. Raises UserError if there is no such module, or one is not valid Python.
    """
    sys.path.insert(0, str(Path.cwd()))
    top, _, _ = module.partition(".")
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = spec_of(name) if name not in files and name.split(".")[0] == top else None
        if spec is None:
            continue
        if package := name.rpartition(".")[0]:
            waiting.append(package)
        if spec.origin is not None and spec.origin.endswith(".py"):
            files[name] = Path(spec.origin)
            waiting += imported(files[name], name if spec.submodule_search_locations else package)
    if module not in files:
        raise UserError(
            f"params.yaml: teacher.adopt: no Python module {module} below {Path.cwd()}, and none is installed"
        )
    return files


def spec_of(name: str) -> ModuleSpec | None:
    """Import spec of a module, or None if there is none; only its parent packages are imported."""
    package = name.rpartition(".")[0]
    if package:
        above = spec_of(package)
        if above is None or above.submodule_search_locations is None:
            return None
    return importlib.util.find_spec(name)


def imported(file: Path, package: str) -> Iterator[str]:
    """Modules, or names in modules, that a file of this package imports anywhere in its code."""
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
