"""Checks that the teacher, the decoders and the code that params.yaml names exist and can be imported."""

from collections.abc import Iterator
from pathlib import Path

from fewstep.backbones.own_code import own_modules
from fewstep.backbones.pipeline import INDEX
from fewstep.backbones.understood import teacher_faults
from fewstep.chain import Chain
from fewstep.checks.teacher import in_cache, is_local, known_teacher
from fewstep.core.errors import UserError
from fewstep.students.decoder import decoder_faults


def faults(chain: Chain) -> Iterator[str]:
    """What the stages that read them would refuse, from names and headers alone."""
    for where in chain.teacher.load:
        if is_local(where):
            yield from refused(Path(where), chain)
        elif chain.import_teacher.local_files_only and in_cache(where, chain.import_teacher.revision) is None:
            yield (
                f"params.yaml: import_teacher.local_files_only: {where} is not in the cache; run "
                f"`hf download {where}` first"
            )
    for factory in chain.teacher.adopt:
        try:
            own_modules(factory.partition(":")[0])
        except UserError as error:
            yield str(error)
    for name, entry in chain.decoder.items():
        if entry.load is not None:
            for fault in decoder_faults(Path(entry.load), known_teacher(chain).vae):
                yield f"params.yaml: decoder.{name}.load: {fault}"


def warnings(chain: Chain) -> Iterator[str]:
    """Absolute paths of this machine in params.yaml that dvc.lock would record."""
    named = set(chain.inputs.values())
    written = {"data.path": (chain.data.path or "",), "teacher.load": chain.teacher.load}
    written |= {f"decoder.{name}.load": (entry.load or "",) for name, entry in chain.decoder.items()}
    for key, places in written.items():
        for place in places:
            if Path(place).is_absolute() and place not in named:
                yield f"{key} = {place}: dvc.lock will hold this path; name it in `inputs` and use the name"


def refused(teacher: Path, chain: Chain) -> Iterator[str]:
    """What is wrong with a teacher's folder or file, with the messages of `import_teacher`."""
    if not teacher.is_file() and not (teacher / INDEX).is_file():
        yield f"params.yaml: teacher.load = [{teacher}]: no diffusers folder ({INDEX}) there"
    else:
        yield from teacher_faults(teacher, chain.teacher.backbone, chain.import_teacher)
