"""encode_data: encode the prepared images and captions once, as the teacher's latents and conditioning."""

import sys

from fewstep.artifacts.workspace import Workspace
from fewstep.config.base import read
from fewstep.config.encode import EncodeConfig
from fewstep.core.hardware import deterministic
from fewstep.core.paths import DATA, ENCODED, TEACHER
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.sampling.encode import encode_split
from fewstep.sampling.frozen import frozen_backbone

SPLIT = sys.argv[1]


def main() -> None:
    """params.yaml `encode_data.SPLIT` + data + teacher -> artifacts/encoded/SPLIT."""
    config = read(EncodeConfig, "encode_data", SPLIT)
    inputs = {"data": DATA, "teacher": TEACHER}
    params = {"split": SPLIT, "encode_data": config.model_dump(mode="json")}
    deterministic()
    backbone = frozen_backbone(TEACHER)
    work = Workspace(f"encode_data@{SPLIT}", params, inputs)
    encode_split(ENCODED / SPLIT, backbone, DATA, SPLIT, config.dtype, work, inputs)
    if is_main_process():
        work.finish()


if __name__ == "__main__":
    run(main, writes=ENCODED / SPLIT, several=True)
