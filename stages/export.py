"""export: one model of the chain as a diffusers pipeline folder with its card."""

import sys

from fewstep.backbones.model import open_model
from fewstep.backbones.registry import open_backbone
from fewstep.config.base import read
from fewstep.config.export import ExportConfig
from fewstep.core.paths import EXPORTS, METRICS, MODELS, TEACHER
from fewstep.core.stage import run
from fewstep.evaluation.record import read_record
from fewstep.evaluation.schema import Metrics
from fewstep.export.pipeline import export

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `export.NAME` + model + teacher + metrics -> artifacts/exports/NAME."""
    config = read(ExportConfig, "export", NAME)
    backbone = open_backbone(TEACHER)
    model = open_model(MODELS / NAME, backbone)
    metrics = read_record(Metrics, METRICS / f"{NAME}.json")
    export(EXPORTS / NAME, model, MODELS / NAME, TEACHER, backbone, metrics, config.steps)


if __name__ == "__main__":
    run(main, writes=EXPORTS / NAME)
