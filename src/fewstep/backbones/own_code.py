"""A user's module and what it imports of its own package: found by name, copied, not run."""

import ast
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from fewstep.core.errors import UserError


def collect(factory: str, folder: Path) -> None:
    """Copy the modules that `package.module:factory` needs into `folder`, laid out as their names say.

    Raises UserError when there is no such module.
    """
    for name, file in own_modules(factory.partition(":")[0]).items():
        package = folder.joinpath(*name.split("."))
        copy = package / file.name if file.name == "__init__.py" else package.with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def own_modules(module: str) -> dict[str, Path]:
    """Name -> file of the module and, however far down, of what it imports of its top-level package.

    Looked for in the working folder, then among what is installed; a package may lack its `__init__.py`, and
    one that has it is imported. Raises UserError when there is no such module, or one is not Python.
    """
    sys.path.insert(0, str(Path.cwd()))
    top, _, _ = module.partition(".")
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = spec_of(name) if name not in found and name.split(".")[0] == top else None
        if spec is None:
            continue
        if package := name.rpartition(".")[0]:
            waiting.append(package)
        if spec.origin is not None and spec.origin.endswith(".py"):
            found[name] = Path(spec.origin)
            waiting += imported(found[name], name if spec.submodule_search_locations else package)
    if module not in found:
        raise UserError(
            f"params.yaml: teacher.adopt: no Python module {module} below {Path.cwd()}, and none is installed"
        )
    return found


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module is, None where nowhere; only the packages that it is in are imported."""
    package = name.rpartition(".")[0]
    if package:
        above = spec_of(package)
        if above is None or above.submodule_search_locations is None:
            return None
    return importlib.util.find_spec(name)


def imported(file: Path, package: str) -> Iterator[str]:
    """What a file of this package may import, wherever in it the import stands: modules, or names in them."""
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
