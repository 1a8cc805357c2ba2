"""train_teacher: a small Stable Diffusion, from scratch (autoencoder, then text encoder and U-Net)."""

from itertools import islice

from fewstep.artifacts.manifest import Manifest
from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.model import teacher_metadata
from fewstep.backbones.sd_new import new_stable_diffusion, save_pipeline
from fewstep.config.base import read
from fewstep.config.teacher import TrainTeacherConfig
from fewstep.core.files import whole_folder
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA, TEACHER
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.data.latents import open_latents, save_latents
from fewstep.data.shards import captions, open_images, read_index
from fewstep.pretraining.autoencoder import Vae, unit_variance
from fewstep.pretraining.teacher import Teacher
from fewstep.sampling.encode import encode_shards
from fewstep.training.loop import train

TOKENIZER_CAPTIONS = 100_000
"""The tokenizer learns from this many captions at most."""


def main() -> None:
    """params.yaml `train_teacher` + artifacts/data -> artifacts/models/teacher."""
    seed, config = read(int, "seed"), read(TrainTeacherConfig, "train_teacher")
    resolution = read_index(DATA).resolution
    some = islice(captions(DATA, "train"), TOKENIZER_CAPTIONS)
    backbone = new_stable_diffusion(config, resolution, some, seed)
    vae = Vae(backbone.vae, config.vae, open_images(DATA, "train", Key(seed, "vae/order")), seed)
    params = {"seed": seed, "train_teacher": config.model_dump(mode="json")}
    work = Workspace("train_teacher", params, {"data": DATA})
    train(vae, "vae", seed, work.folder)
    unit_variance(backbone.vae, open_images(DATA, "train", Key(seed, "vae/scale")))
    folder = work.folder / "latents"
    encode_shards("latents", DATA, "train", backbone.encode, folder, save_latents)
    latents = open_latents(DATA, "train", folder, Key(seed, "teacher/order"))
    train(Teacher(backbone, config, latents, seed), "teacher", seed, work.folder)
    if is_main_process():
        with whole_folder(TEACHER) as staging:
            save_pipeline(backbone, staging)
            Manifest.seal(
                staging, "teacher", teacher_metadata("sd", backbone) | work.metadata, {"data": DATA}
            )
        work.finish()


if __name__ == "__main__":
    run(main, writes=TEACHER, several=True)
