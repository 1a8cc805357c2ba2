"""Parameter files of published methods, and `fewstep init`, which writes one."""

from pathlib import Path
from shutil import copytree

import pytest
import yaml
from tools.recipes import FAMILIES, METHODS, recipes

from fewstep.chain import load_chain
from fewstep.checks import recipe
from fewstep.cli import main
from tests.integration.project import ROOT

FILES = sorted(recipes())


def test_the_files_are_those_that_the_templates_make() -> None:
    """`python -m tools.recipes` writes them."""
    assert {file.name: file.read_text() for file in (ROOT / "params").glob("*.yaml")} == recipes()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_a_chain_with_usual_settings(name: str, clone: Path) -> None:
    method, family = name.removesuffix(".yaml").split("_")
    main(["init", family, "--method", method])
    chain = load_chain(Path("params.yaml"))
    assert list(recipe.warnings(chain)) == []
    assert chain.students and set(chain.export) == set(chain.students)
    assert all(model.config.lora is not None for model in chain.models().values())
    resolution = {"sd15": 512, "sd21": 768}.get(family, 1024)
    assert chain.data.resolution == chain.data.filters.min_side == resolution


def test_init_loses_no_file(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        main(["init", "sdxl"])
    assert Path("params.yaml").read_text() == "mine"
    assert "add --force to replace it, or --to another.yaml" in capsys.readouterr().err
    main(["init", "sdxl", "--to", "other.yaml"])
    main(["init", "sdxl", "--force"])
    assert Path("params.yaml").read_text() == Path("other.yaml").read_text()
    assert yaml.safe_load(Path("other.yaml").read_text())["teacher"]["backbone"] == "sdxl"


def test_init_names_the_known_files(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init", "sdxxl"])
    error = capsys.readouterr().err
    assert "params/instaflow_sdxxl.yaml: no such file; there are dmd2_flux, dmd2_pixart" in error
    assert len(FILES) == len(FAMILIES) * len(METHODS)
