"""generate_triplets: a group of shards of (text, noise, image) drawn from the teacher."""

import sys

from fewstep.artifacts.workspace import Workspace
from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.core.paths import TEACHER, TRIPLETS
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.sampling.draw import frozen_sampler
from fewstep.sampling.frozen import frozen_backbone
from fewstep.sampling.groups import write_group

GROUP = int(sys.argv[1])
OUT = TRIPLETS / str(GROUP)


def main() -> None:
    """params.yaml `sampling`, `triplets` + prompts + teacher -> artifacts/triplets/GROUP/SHARD."""
    seed, config = read(int, "seed"), read(TripletsConfig, "triplets")
    sampling = config.sampling(read(SamplingConfig, "sampling"))
    inputs = {"prompts": config.prompts, "teacher": TEACHER}
    params = {
        "seed": seed,
        "triplets": config.model_dump(mode="json", exclude={"count", "groups"}),
        "sampling": sampling.model_dump(mode="json"),
    }
    sampler = frozen_sampler(TEACHER, frozen_backbone(TEACHER), sampling)
    work = Workspace("generate_triplets", params, inputs)
    write_group(OUT, sampler, config, GROUP, seed, work, inputs)
    if is_main_process():
        work.finish(keep=True)


if __name__ == "__main__":
    run(main, writes=OUT, several=True)
