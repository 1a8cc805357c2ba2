"""The README's six lines turn the default params into Stable Diffusion and a folder of pictures."""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.integration.project import ROOT, Project
from tests.photos import make_photo_folder


def test_the_readmes_six_lines_pass_the_check(new_project: Callable[..., Project], tmp_path: Path) -> None:
    found = re.search(r"<!-- six lines -->\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    edits = found[1].splitlines()
    assert len(edits) == 6
    lines = (ROOT / "params.yaml").read_text().splitlines()
    for edit in edits:
        key = edit.partition(":")[0] + ":"
        # The first line of this key and indentation is the one a person would edit.
        number = next(i for i, line in enumerate(lines) if line.startswith(key))
        lines[number] = edit
    make_photo_folder(tmp_path / "photos", 4)
    text = "\n".join(lines).replace("~/photos", str(tmp_path / "photos"))
    project = new_project(yaml.safe_load(text))
    result = project.run("fewstep", "check", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert "import_teacher, downloads stable-diffusion-v1-5/stable-diffusion-v1-5" in result.stdout
