"""How a stage ends, its exit status, and that it alone prints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch
import yaml
from tools.imports import ROOT

from fewstep.core.errors import UserError
from fewstep.core.stage import run
from tests.began import BEGAN_IN, PYTHON
from tests.pipelines import make
from tests.terminal import on_a_terminal


def no_memory_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")


def no_memory_on_the_host() -> None:
    torch.empty(1 << 50)


def wrong() -> None:
    raise UserError("params.yaml: seed is missing")


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (no_memory_on_the_gpu, "error: the device is out of memory: CUDA out of memory"),
        (no_memory_on_the_host, "error: the device is out of memory:"),
        (wrong, "error: params.yaml: seed is missing"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    main: Callable[[], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["reflow.py"])
    with pytest.raises(SystemExit) as ended:
        run(main, writes=Path("artifacts/models/reflow"))
    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert captured.err.startswith(message) and captured.err.count("\n") == 1
    assert ("FEWSTEP_MICRO_BATCH" in captured.err) == ("memory" in message)
    assert captured.out == "reflow: writes artifacts/models/reflow\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reflow.py"])

    def bug() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(bug, writes=Path("artifacts"))


LIBRARIES = (
    "import transformers.utils.logging as t, diffusers.utils as d, huggingface_hub.utils as h, tqdm.auto"
)
TALK = """
for bar in (t.tqdm, d.logging.tqdm, tqdm.auto.tqdm):
    list(bar([1, 2], desc="Loading weights"))
d.logging.get_logger("diffusers.pipelines.flux.pipeline_flux").warning("your input was truncated")
t.get_logger("transformers.tokenization_utils_base").warning("Token indices sequence length is longer")
warnings.warn("will be removed", FutureWarning)
list(h.tqdm([1], desc="model.safetensors", disable=None))
d.logging.get_logger("diffusers.pipelines.pipeline_utils").warning("a part of the weights")
t.get_logger("transformers.modeling_utils").warning("newly initialised weights")
warnings.warn("a number is not finite")
"""


@pytest.mark.parametrize("early", [True, False])
def test_libraries_print_no_bars_of_their_own_but_warn_of_what_matters(early: bool, tmp_path: Path) -> None:
    """Imported before the stage begins or after."""
    first, then = (LIBRARIES, "") if early else ("", LIBRARIES)
    body = indent(f"{then}{TALK}", "    ")
    start = "import warnings\nfrom pathlib import Path\nfrom fewstep.core.stage import run"
    (tmp_path / "talk.py").write_text(f"{first}\n{start}\ndef main():\n{body}\nrun(main, writes=Path('x'))")
    command, environment = [sys.executable, "talk.py"], {**os.environ, "TERM": "dumb"}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert piped.stdout == "talk: writes x\n"
    for matters in ("a part of the weights", "newly initialised weights", "is not finite"):
        assert matters in piped.stderr
    for noise in ("Loading", "truncated", "Token indices", "removed", "%"):
        assert noise not in piped.stderr
    if not early:
        return
    shown = on_a_terminal(command, tmp_path, environment)
    assert "model.safetensors: 100%" in shown, "the bar of a download, which may take an hour"
    assert "Loading" not in shown and "truncated" not in shown and "removed" not in shown


@pytest.mark.parametrize(("family", "how"), [("sd", {}), ("sd3", {"without": ["text_encoder_3"]})])
def test_a_real_import_prints_the_lines_of_its_stage_alone(
    family: str, how: dict[str, Any], tmp_path: Path
) -> None:
    make(family, tmp_path / "stock")
    teacher = {"backbone": family, "train": [], "load": ["./stock"], "adopt": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"teacher": teacher, "import_teacher": how}))
    command = [PYTHON, str(ROOT / "stages/import_teacher.py")]
    environment = {**BEGAN_IN, "PYTHONPATH": str(ROOT / "src")}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert piped.stderr == "" and piped.stdout.startswith("import_teacher: writes artifacts/models/teacher\n")
    assert "it/s" not in piped.stdout
    if family == "sd":
        assert on_a_terminal(command, tmp_path, environment) == piped.stdout
