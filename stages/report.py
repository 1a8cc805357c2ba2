"""report: everything that was made and measured, on one page."""

from pathlib import Path

from dvc.repo import Repo  # type: ignore[import-untyped]

from fewstep.config.base import read
from fewstep.core.paths import REPORT
from fewstep.core.stage import run
from fewstep.report.page import build


def main() -> None:
    """params.yaml `evaluate.models` + metrics, evaluations, manifests, dvc.yaml -> reports/index.html."""
    models = read(dict[str, list[int]], "evaluate", "models")
    build(list(models), Path(), needs(), REPORT)


def needs() -> dict[str, list[str]]:
    """Name of each stage of dvc.yaml -> names of the stages it needs. Takes no lock: `dvc repro` holds it."""
    with Repo() as repo:
        graph = repo.index.graph
        return {stage.addressing: sorted(need.addressing for need in graph[stage]) for stage in graph}


if __name__ == "__main__":
    run(main, writes=REPORT)
