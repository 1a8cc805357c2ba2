"""The params files have the keys that DVC needs, in the form of its writer: a changed value is one line."""

import difflib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]
from dvc.utils.serialize import modify_yaml  # type: ignore[import-untyped]
from flows.overrides import override, put
from tools.imports import ROOT

from fewstep.chain import load_chain
from fewstep.checks import keys
from fewstep.core.errors import UserError

FILES = sorted(
    path.relative_to(ROOT)
    for pattern in ("params.yaml", "params/*_sdxl.yaml", "examples/*/params.yaml")
    for path in ROOT.glob(pattern)
)
"""Of the templates' files (tools/recipes) one family's, which stands for all."""
APART = 8
"""One value of so many is changed at a time: neighbours may be on one line."""
each_file = pytest.mark.parametrize("file", FILES, ids=str)


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys and value of every scalar that is not in a list."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif not isinstance(values, list):
        yield path, values


def another(value: Any) -> Any:
    """A value of the kind, somewhat longer."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 10 * value + 1001
    if isinstance(value, float):
        return value + 0.0625
    return f"{value or 'other'}-2"


def changes(before: str, after: str) -> list[str]:
    """The lines of a diff, `-old` and `+new`.

    Texts with equally many lines are compared line by line: where entries repeat each other, difflib matches
    lines of different ones.
    """
    old, new = before.splitlines(), after.splitlines()
    if len(old) == len(new):
        return [line for a, b in zip(old, new, strict=True) if a != b for line in (f"-{a}", f"+{b}")]
    diff = difflib.unified_diff(old, new, n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


@each_file
def test_a_file_that_is_not_changed_stays_as_it_is(file: Path, tmp_path: Path) -> None:
    text, copy = (ROOT / file).read_text(), tmp_path / "params.yaml"
    copy.write_text(text)
    with modify_yaml(str(copy)):
        pass
    assert changes(text, copy.read_text()) == []


@each_file
@pytest.mark.parametrize("turn", range(APART))
def test_a_value_that_a_flow_overrides_is_one_line(file: Path, turn: int, tmp_path: Path) -> None:
    text, copy = (ROOT / file).read_text(), tmp_path / "params.yaml"
    copy.write_text(text)
    chosen = list(leaves(yaml.safe_load(text)))[turn::APART]
    with modify_yaml(str(copy)) as kept:
        for keys, value in chosen:
            put(kept, ".".join(keys), another(value))
    diff = changes(text, copy.read_text())
    assert [sum(line[0] == sign for line in diff) for sign in "-+"] == [len(chosen)] * 2, diff


@each_file
@pytest.mark.parametrize("key", ["seed", "data.resolution", "sampling.guidance"])
def test_a_value_that_dvc_exp_run_sets_is_one_line(file: Path, key: str, tmp_path: Path) -> None:
    """`dvc exp run -S` gives every list back anew, without what was written about it."""
    text, copy = (ROOT / file).read_text(), tmp_path / "params.yaml"
    copy.write_text(text)
    apply_overrides(str(copy), [f"{key}=7"])
    diff = changes(text, copy.read_text())
    assert [line[0] for line in diff] == ["-", "+"], diff


def test_a_value_that_several_entries_share_is_not_overridden_in_one(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["halve"]["2"]["training"] = values["halve"]["4"]["training"]
    text = yaml.safe_dump(values)
    assert "&id" in text
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(
        UserError, match=r"halve\.4\.training\.steps': an anchor .* of halve\.2\.training too"
    ):
        override(tmp_path, {"halve.4.training.steps": 5})
    assert (tmp_path / "params.yaml").read_text() == text


@each_file
def test_it_has_every_key_that_dvc_needs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / file, tmp_path / "params.yaml")
    images = Path(yaml.safe_load((ROOT / file).read_text())["data"]["path"] or "none")
    images.mkdir(parents=True)  # the examples make theirs, labelled, with their teacher
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "labels": {"digit": "3"}}))
    assert [*keys.faults(load_chain())] == []
