"""adopt_teacher: a model from a module of the user's own as the chain's teacher."""

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.custom import adopt
from fewstep.backbones.model import teacher_metadata
from fewstep.core.files import whole_folder
from fewstep.core.paths import CODE, TEACHER
from fewstep.core.stage import run


def main() -> None:
    """artifacts/code + what the factory in it loads, as trained weights -> artifacts/models/teacher."""
    factory = Manifest.open(CODE, "code").facts["factory"]
    with whole_folder(TEACHER) as staging:
        model = adopt(factory, CODE, staging)
        Manifest.seal(staging, "teacher", teacher_metadata("custom", model), {"code": CODE})


if __name__ == "__main__":
    run(main, writes=TEACHER)
