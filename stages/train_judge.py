"""train_judge: the classifier that recognises the attributes of labelled images."""

import torch

from fewstep.artifacts.workspace import Workspace
from fewstep.config.base import read
from fewstep.config.classifier import ClassifierConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA, JUDGE
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.data.shards import open_images, read_index
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.pretraining.classifier import ClassifierTraining
from fewstep.training.loop import train


def main() -> None:
    """params.yaml `train_judge` + artifacts/data -> artifacts/judge."""
    seed, config = read(int, "seed"), read(ClassifierConfig, "train_judge")
    index = read_index(DATA)
    if index.labels is None:
        raise UserError("params.yaml: judge.train needs labelled data; set judge.train: [] for this source")
    torch.manual_seed(Key(seed, "judge/init").seed32(0))
    hidden = index.hidden or {}
    labels = {**hidden, **index.labels}
    classifier = AttributeClassifier(labels, config.widths, config.feature_dim, tuple(hidden))
    images = open_images(DATA, "train", Key(seed, "judge/order"))
    method, params = ClassifierTraining(classifier, config, images, seed), config.model_dump(mode="json")
    work = Workspace("train_judge", {"seed": seed, "train_judge": params}, {"data": DATA})
    train(method, "judge", seed, work.folder)
    if is_main_process():
        classifier.save(JUDGE, index.resolution, {"data": DATA}, work.metadata)
        work.finish()


if __name__ == "__main__":
    run(main, writes=JUDGE, several=True)
