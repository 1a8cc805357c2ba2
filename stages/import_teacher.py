"""import_teacher: a foreign model as the chain's teacher."""

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.importing import import_teacher
from fewstep.config.base import read
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig
from fewstep.core.files import whole_folder
from fewstep.core.paths import TEACHER
from fewstep.core.stage import run


def main() -> None:
    """params.yaml `teacher`, `import_teacher` -> artifacts/models/teacher."""
    teacher, config = read(TeacherConfig, "teacher"), read(ImportTeacherConfig, "import_teacher")
    with whole_folder(TEACHER) as staging:
        metadata = import_teacher(teacher.load[0], teacher.backbone, config, staging)
        Manifest.seal(staging, "teacher", metadata, {})


if __name__ == "__main__":
    run(main, writes=TEACHER)
