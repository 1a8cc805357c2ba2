"""import_teacher: a foreign diffusers pipeline as the chain's teacher."""

from fewstep.artifacts.folder import whole_folder
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.sd import teacher_facts
from fewstep.backbones.sd_import import backbone_of, import_pipeline, save_imported
from fewstep.config.base import read
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig
from fewstep.layout import TEACHER
from fewstep.stage import run


def main() -> None:
    """params.yaml `teacher.load`, `import_teacher` -> artifacts/models/teacher."""
    (where,) = read(TeacherConfig, "teacher").load
    pipeline = import_pipeline(where, read(ImportTeacherConfig, "import_teacher"))
    with whole_folder(TEACHER) as staging:
        save_imported(pipeline, staging)
        Manifest.seal(staging, "teacher", teacher_facts(backbone_of(pipeline)), {})


if __name__ == "__main__":
    run(main, writes=TEACHER)
