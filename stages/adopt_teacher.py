"""adopt_teacher: a model from a file of the user's own as the chain's teacher."""

from pathlib import Path

from fewstep.artifacts.folder import whole_folder
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.base import teacher_facts
from fewstep.backbones.custom import adopt
from fewstep.config.base import read
from fewstep.config.teacher import AdoptTeacherConfig, TeacherConfig
from fewstep.layout import TEACHER
from fewstep.stage import run


def main() -> None:
    """params.yaml `teacher.adopt`, `adopt_teacher` + the user's file -> artifacts/models/teacher."""
    teacher, config = read(TeacherConfig, "teacher"), read(AdoptTeacherConfig, "adopt_teacher")
    with whole_folder(TEACHER) as staging:
        model = adopt(Path(teacher.adopt[0]), config.factory, staging)
        Manifest.seal(staging, "teacher", teacher_facts("custom", model), {})


if __name__ == "__main__":
    run(main, writes=TEACHER)
