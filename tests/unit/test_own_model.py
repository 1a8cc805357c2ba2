"""A model of the user's own: loaded by its factory's name, kept as it was adopted."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.artifacts.manifest import NAME, Manifest
from fewstep.backbones.custom import adopt
from fewstep.backbones.model import teacher_metadata
from fewstep.backbones.own_code import collect
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.base import validate
from fewstep.config.teacher import TeacherConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder
from fewstep.core.paths import CODE, TEACHER

FACTORY = "lab.ddpm.model:build"
FILES = {
    "lab/ddpm/model.py": """
        from torch import nn
        from fewstep.backbones.custom import CustomModel
        from fewstep.diffusion.denoiser import Prediction
        from fewstep.diffusion.schedules import Cosine
        from .layers import Net
        from lab.tools import scale

        class Mine(CustomModel):
            def call(self, net, x, time, conditions):
                from lab import late
                return scale(net(x)) + late.SHIFT

        def build(trained):
            net = Net(2)
            if trained:
                nn.init.constant_(net.weight, 0.5)
            return Mine(net, (2, 4, 4), Cosine(), Prediction.V)

        def nothing(trained):
            return None
        """,
    "lab/ddpm/layers.py": """
        from torch import nn

        class Net(nn.Conv2d):
            def __init__(self, channels):
                super().__init__(channels, channels, 1, bias=False)
        """,
    "lab/tools/__init__.py": "from lab.tools.numbers import scale\n",
    "lab/tools/numbers.py": "import math\n\ndef scale(x):\n    return 2 * x\n",
    "lab/late.py": "SHIFT = 1.0\n",
    "lab/unused.py": "raise RuntimeError('nobody imports this')\n",
}
NEEDED = {name for name in FILES if "unused" not in name}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a package of the user's own."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield
    as_in_a_new_process()


def as_in_a_new_process() -> None:
    """Nothing of the user's is imported."""
    sys.path[:] = [place for place in sys.path if "pytest-of" not in place]
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]


def adopted(factory: str = FACTORY) -> Backbone:
    """What the stages collect_code and adopt_teacher do, and a later stage begins with."""
    as_in_a_new_process()
    with whole_folder(CODE) as staging:
        collect(factory, staging)
        Manifest.seal(staging, "code", {"factory": factory}, {})
    with whole_folder(TEACHER) as staging:
        Manifest.seal(
            staging, "teacher", teacher_metadata("custom", adopt(factory, CODE, staging)), {"code": CODE}
        )
    return open_backbone(TEACHER)


def answer(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.network(backbone.net)(torch.ones(1, 2, 4, 4), torch.zeros(1), {})


def test_what_is_collected_is_the_module_and_what_it_imports_of_its_package(tmp_path: Path) -> None:
    collect(FACTORY, tmp_path / "code")
    files = {path.relative_to(tmp_path / "code"): path for path in (tmp_path / "code").rglob("*.py")}
    assert {str(name) for name in files} == NEEDED
    assert all(path.read_text() == (tmp_path / name).read_text() for name, path in files.items())
    assert "lab.ddpm.model" not in sys.modules


def test_it_is_opened_from_its_copies_whatever_becomes_of_the_originals(tmp_path: Path) -> None:
    expected = torch.full((1, 2, 4, 4), 3.0)  # 2 (0.5 + 0.5) + 1
    assert torch.equal(answer(adopted()), expected)
    for name, text in (("tools/numbers", "def scale(x):\n    return 100 * x\n"), ("late", "SHIFT = 100.0\n")):
        (tmp_path / f"lab/{name}.py").write_text(text)
    (tmp_path / "lab/ddpm/model.py").unlink()
    assert torch.equal(answer(open_backbone(TEACHER)), expected)
    assert isinstance(
        open_backbone(TEACHER).net, nn.Conv2d
    )  # refused if anything had been added to the artifact


def test_what_it_imports_is_part_of_the_teachers_identity(tmp_path: Path) -> None:
    before = [adopted() and (folder / NAME).read_text() for folder in (CODE, TEACHER)]
    (tmp_path / "lab/unused.py").write_text("# edited\n")
    assert [adopted() and (folder / NAME).read_text() for folder in (CODE, TEACHER)] == before
    (tmp_path / "lab/tools/numbers.py").write_text("def scale(x):\n    return 3 * x\n")
    changed = adopted()
    assert all(
        (folder / NAME).read_text() != old for folder, old in zip((CODE, TEACHER), before, strict=True)
    )
    assert torch.equal(answer(changed), torch.full((1, 2, 4, 4), 4.0))


@pytest.mark.parametrize(
    "value", ["lab/ddpm/model.py", "lab.ddpm.model", "lab/ddpm/model:build", ":build", "a.:b"]
)
def test_another_form_of_the_name_is_refused_with_the_right_one(value: str) -> None:
    section = {"backbone": "custom", "adopt": [value]}
    with pytest.raises(UserError) as refused:
        validate(TeacherConfig, section, "teacher")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"params.yaml: teacher.adopt.0 = '{value}': expected `package.module:factory`")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("lab.ddpm.other:build", r"teacher\.adopt: no Python module lab\.ddpm\.other below"),
        ("nowhere:build", r"no Python module nowhere"),
        ("lab.ddpm.model.deeper:build", r"no Python module lab\.ddpm\.model\.deeper"),
        (
            "lab.ddpm.model:make",
            r"teacher\.adopt = \[lab\.ddpm\.model:make\]: lab\.ddpm\.model has no function make",
        ),
        ("lab.ddpm.model:nothing", r"returned None, not a fewstep\.backbones\.custom\.CustomModel"),
    ],
)
def test_what_is_not_there_is_named(factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adopted(factory)


def test_a_mistake_in_the_users_file_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "lab/ddpm/layers.py").write_text("import torch\nclass Net(\n")
    with pytest.raises(UserError, match=r"lab/ddpm/layers\.py, line 2: "):
        collect(FACTORY, tmp_path / "code")
