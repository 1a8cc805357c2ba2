"""generate_triplets: one shard of (text, noise, image) drawn from the teacher."""

import sys

from fewstep.backbones.base import open_backbone, open_model
from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.layout import TEACHER, TRIPLETS
from fewstep.processes import is_main_process
from fewstep.sampling.draw import Sampler
from fewstep.sampling.triplets import write_triplets
from fewstep.stage import run
from fewstep.workspace import finished, workspace

SHARD = int(sys.argv[1])
OUT = TRIPLETS / str(SHARD)


def main() -> None:
    """params.yaml `sampling`, `triplets` + prompts + teacher -> artifacts/triplets/SHARD."""
    seed, config = read(int, "seed"), read(TripletsConfig, "triplets")
    sampling = read(SamplingConfig, "sampling").model_copy(update={"steps": config.steps})
    made_from = {"prompts": config.prompts, "teacher": TEACHER}
    params = {
        "seed": seed,
        "triplets": config.model_dump(mode="json", exclude={"shards"}),
        "sampling": sampling.model_dump(mode="json"),
    }
    folder = workspace(f"generate_triplets@{SHARD}", params, made_from)
    backbone = open_backbone(TEACHER)
    sampler = Sampler(open_model(TEACHER, backbone), backbone, sampling)
    write_triplets(OUT, sampler, config, SHARD, seed, folder, made_from)
    if is_main_process():
        finished(folder)


if __name__ == "__main__":
    run(main, writes=OUT, several=True)
