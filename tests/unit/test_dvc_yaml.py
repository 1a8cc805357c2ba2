"""dvc.yaml against the code: a stage depends on what it imports."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo  # type: ignore[import-untyped]
from dvc_data.hashfile.meta import Meta
from jinja2.meta import find_referenced_templates
from tools.dvc_deps import rewritten
from tools.imports import ROOT, SRC, closure, is_empty_package

import fewstep.chain  # noqa: F401  which imports every section
from fewstep.config.base import Section
from fewstep.report.page import templates
from fewstep.students.learn import method_module
from tests.pipelines import MAKERS, backbone_of


def folder_of_photos(backbone: str) -> dict[str, object]:
    """One's own images and an imported teacher of this family."""
    return {
        "data": {"source": "folder", "path": "photos", "resolution": 32},
        "judge": {"train": []},
        "teacher": {"backbone": backbone, "train": [], "load": ["somewhere"], "adopt": []},
        "encode_data": {"train": {"dtype": "float16"}},
    }


FAMILIES = sorted({backbone_of(family) for family in MAKERS})
OWN_MODEL = {
    "teacher": {"backbone": "custom", "train": [], "load": [], "adopt": ["package.module:build"]},
    "export": {},
}


def stages(params: dict[str, object], folder: Path) -> Iterator[tuple[str, str, set[Path]]]:
    """Name, command and modules of each stage of dvc.yaml under these params."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for source in ("src", "stages"):
        (folder / source).symlink_to(ROOT / source)
    Repo.init(folder, no_scm=True)
    with Repo(folder) as repo:
        for stage in repo.index.stages:
            if stage.always_changed:  # it runs each time, whatever it depends on
                continue
            deps = [Path(dep.def_path) for dep in stage.deps if dep.def_path]
            yield (
                stage.name,
                stage.cmd,
                {m for dep in deps if dep.parts[0] in ("src", "stages") for m in modules(dep)},
            )


def modules(dep: Path) -> Iterator[Path]:
    """The Python files of a dependency; an empty package face can change no result."""
    files = [ROOT / dep] if dep.suffix else sorted((ROOT / dep).rglob("*.py"))
    assert files, f"{dep}: dvc.yaml names what is not there"
    yield from (file for file in files if file.suffix == ".py" and not is_empty_package(file))


def imported_by(name: str, command: str, params: dict[str, dict[str, object]]) -> set[Path]:
    """The script and its imports; modules that are imported by a name from params are added here."""
    script = ROOT / command.split()[1]
    package = SRC / "fewstep"
    chosen = []
    if script.stem == "prepare_data":
        chosen.append(package / f"sources/{params['data']['source']}/__init__.py")
    if script.stem in (
        "import_teacher",
        "encode_data",
        "generate_triplets",
        "compress",
        "reflow",
        "halve",
        "distill",
        "evaluation_set",
        "evaluate",
        "export",
    ):
        chosen.append(package / f"backbones/{params['teacher']['backbone']}.py")
    if script.stem == "distill":
        student = params["students"][name.split("@")[1]]
        assert isinstance(student, dict)
        chosen.append(package / f"methods/{student['method']}.py")
    if package / "features/network.py" in closure(script, *chosen):  # it finds the others by their files
        chosen += (package / "features").glob("*.py")
    return closure(script, *chosen)


@pytest.mark.parametrize(
    ("changes", "teacher"),
    [
        ({}, {"train_teacher"}),
        (OWN_MODEL, {"adopt_teacher"}),
        *((folder_of_photos(family), {"import_teacher"}) for family in FAMILIES),
    ],
    ids=["default", "own model", *FAMILIES],
)
def test_dependencies_are_the_transitive_imports(
    changes: dict[str, object], teacher: set[str], tmp_path: Path
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | changes
    names = set()
    for name, command, dependencies in stages(params, tmp_path):
        wanted = imported_by(name, command, params)
        missing = sorted(str(p.relative_to(ROOT)) for p in wanted - dependencies)
        assert not missing, f"{name}: edits of {missing} would go unnoticed"
        names.add(name.split("@")[0])
    assert "report" in names
    makers = {"train_teacher", "import_teacher", "adopt_teacher"}
    assert names & makers == teacher


def test_every_stage_names_what_it_makes() -> None:
    """DVC skips a stage whose dependencies are those of the lock file, unless an output is missing."""
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = {name: {"outs", "metrics"} & {*stage.get("do", stage)} for name, stage in described.items()}
    assert all(made.values()), made


def test_the_report_depends_on_its_templates() -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]["deps"]
    named, waiting = set(), ["page.html"]
    environment = templates()
    while waiting:
        name = waiting.pop()
        named.add(name)
        source = (SRC / "fewstep/report/templates" / name).read_text()
        waiting += filter(None, find_referenced_templates(environment.parse(source)))
    assert "src/fewstep/report" in deps or {Path(dep).name for dep in deps if "/templates/" in dep} == named


def test_dependencies_are_what_the_tool_writes() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert rewritten(text) == text, "run `make deps`"


@pytest.mark.parametrize(
    ("edited", "stages_to_run"),
    [
        ("report/page.py", {"report"}),
        ("pretraining/autoencoder.py", {"train_teacher"}),
        ("pretraining/classifier.py", {"train_judge"}),
        ("preparation/prepare.py", {"prepare_data"}),
        ("export/card.py", {"export"}),
    ],
)
def test_an_edit_reruns_what_it_concerns(edited: str, stages_to_run: set[str], tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    file = SRC / "fewstep" / edited
    concerned = {
        name.split("@")[0] for name, _, dependencies in stages(params, tmp_path) if file in dependencies
    }
    assert concerned == stages_to_run


PARAMS = [
    *(ROOT / place for place in ("params.yaml", "tests/integration/miniature.yaml")),
    *(ROOT / "params").glob("*.yaml"),
    *(ROOT / "examples").glob("*/params.yaml"),
]


@pytest.mark.parametrize("file", PARAMS, ids=[str(file.relative_to(ROOT)) for file in PARAMS])
def test_every_parameter_of_dvc_yaml_is_in_each_file(file: Path) -> None:
    params = yaml.safe_load(file.read_text())
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for key in stage.get("do", stage).get("params", []):
            if "${" not in key:
                section, _, entry = key.partition(".")
                # A stage that `foreach` leaves out needs no section.
                assert not entry or section not in params or entry in params[section], f"{name}: {key}"


def test_no_key_has_a_name_that_dvcs_run_cache_overlooks() -> None:
    """`_get_cache_hash` of dvc/stage/cache.py leaves these keys out at any depth, and takes an old result."""
    for file in (SRC / "fewstep/methods").glob("[a-z]*.py"):
        method_module(file.stem)
    sections = [Section]
    for section in sections:
        sections += section.__subclasses__()
    # Others describe files, such as a feature network's preprocessor_config.json.
    ours = ("fewstep.chain", "fewstep.config", "fewstep.methods", "fewstep.students")
    of_params = [section for section in sections if section.__module__.startswith(ours)]
    assert len(of_params) > 40
    for section in of_params:
        names = {field.alias or name for name, field in section.model_fields.items()}
        assert not names & {Meta.PARAM_SIZE, Meta.PARAM_NFILES}, section
