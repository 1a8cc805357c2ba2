"""Writes the modules that each stage depends on into dvc.yaml: `make deps`.

DVC 3.67 accepts no list interpolation in `deps:`, so the lists are written out, from the import graph of
each stage's script. Entries with `${...}` stay: they are modules chosen by params. The imports of every
possible choice are listed too. A stage that needs most of a folder depends on the folder.
"""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tools.imports import ROOT, SRC, closure, is_empty_package

PACKAGE = SRC / "fewstep"
MOST = 0.8
"""Share of a folder's modules above which the folder is listed in their place."""
LOOKED_UP = {PACKAGE / "features/network.py": PACKAGE / "features"}
"""Module -> folder whose modules it imports by name at run time."""


def rewritten(text: str) -> str:
    """The text of dvc.yaml with each stage's `deps` taken from the code."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width, yaml.preserve_quotes = 200, True
    chain = yaml.load(text)
    for stage in chain["stages"].values():
        stage = stage.get("do", stage)
        if stage.get("always_changed") and len(stage["deps"]) == 1:
            continue  # it runs every time, independently of its code
        stage["deps"][:] = deps_of(stage)
    out = StringIO()
    yaml.dump(chain, out)
    return out.getvalue()


def deps_of(stage: Any) -> list[str]:
    """A stage's dependencies: its script, this project's modules, and everything else that is listed."""
    script = stage["cmd"].split()[1]
    listed = list(stage["deps"])
    chosen = [dep for dep in listed if dep.startswith("src/") and "${" in dep]
    others = [dep for dep in listed if not dep.startswith(("src/", "stages/"))]
    modules = shortened(needed(ROOT / script, chosen))
    # Templates and styles, unless their folder is listed.
    data = [dep for dep in listed if dep.startswith("src/") and Path(dep).suffix not in ("", ".py")]
    data = [dep for dep in data if not any(dep.startswith(f"{module}/") for module in modules)]
    return [script, *sorted({*modules, *chosen, *data}), *others]


def needed(script: Path, chosen: list[str]) -> set[Path]:
    """Modules of this project that the script may import, for any choice of params, without the choices."""
    choices = {dep: list(alternatives(dep)) for dep in chosen}
    files = [file for each in choices.values() for file in each]
    modules = closure(script, *files)
    for module, folder in LOOKED_UP.items():
        if module in modules:
            modules |= closure(*folder.glob("*.py"))
    by_others = closure(script).union(*(closure(file) - own_modules(file) for file in files))
    return modules - (set().union(*map(own_modules, files)) - by_others) - {script}


def own_modules(choice: Path) -> set[Path]:
    """The modules of a choice: its file, or all modules of its package."""
    return {*choice.parent.rglob("*.py")} if choice.stem == "__init__" else {choice}


def alternatives(dep: str) -> Iterator[Path]:
    """Every module to which a dependency with `${...}` can resolve."""
    for path in sorted(ROOT.glob(re.sub(r"\$\{[^}]*\}", "*", dep))):
        file = path if path.suffix else path / "__init__.py"
        if file.is_file() and not is_empty_package(file) and is_choice(file):
            yield file


def is_choice(file: Path) -> bool:
    """Whether params can name the module: it defines one of the names below."""
    names = ("Adapter =", "def samples(", "METHOD =")
    return any(f"\n{name}" in file.read_text() for name in names)


def shortened(modules: set[Path]) -> list[str]:
    """Paths relative to the root, with a folder in place of its modules where most of them are listed."""
    paths = set(modules)
    for folder in sorted(PACKAGE.iterdir()):
        every = {file for file in folder.rglob("*.py") if not is_empty_package(file)}
        if every and len(every & modules) >= MOST * len(every):
            paths = (paths - every) | {folder}
    return [str(path.relative_to(ROOT)) for path in paths]


if __name__ == "__main__":
    file = ROOT / "dvc.yaml"
    file.write_text(rewritten(file.read_text()))
