"""collect_code: copy the modules of the user's own model; runs every time, so that DVC sees changes."""

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.own_code import collect
from fewstep.config.base import read
from fewstep.config.teacher import TeacherConfig
from fewstep.core.files import whole_folder
from fewstep.core.paths import CODE
from fewstep.core.stage import run


def main() -> None:
    """params.yaml `teacher.adopt` + the modules it names -> artifacts/code."""
    (factory,) = read(TeacherConfig, "teacher").adopt
    with whole_folder(CODE) as staging:
        collect(factory, staging)
        Manifest.seal(staging, "code", {"factory": factory}, {})


if __name__ == "__main__":
    run(main, writes=CODE)
