"""encode_data: the prepared pictures and captions as the teacher's latents and conditions, once for all."""

import sys

from fewstep.backbones.base import open_backbone
from fewstep.config.base import read
from fewstep.config.encode import EncodeConfig
from fewstep.hardware import deterministic
from fewstep.layout import DATA, ENCODED, TEACHER
from fewstep.sampling.encode import encode_split
from fewstep.stage import run
from fewstep.workspace import finished, workspace

SPLIT = sys.argv[1]


def main() -> None:
    """params.yaml `encode_data.SPLIT` + data + teacher -> artifacts/encoded/SPLIT."""
    config = read(EncodeConfig, "encode_data", SPLIT)
    made_from = {"data": DATA, "teacher": TEACHER}
    params = {"split": SPLIT, "config": config.model_dump(mode="json")}
    folder = workspace(f"encode_data@{SPLIT}", params, made_from)
    deterministic()
    encode_split(ENCODED / SPLIT, open_backbone(TEACHER), DATA, SPLIT, config.dtype, folder, made_from)
    finished(folder)


if __name__ == "__main__":
    run(main, writes=ENCODED / SPLIT)
