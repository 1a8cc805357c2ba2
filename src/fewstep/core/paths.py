"""Paths of all artifacts and outputs, relative to the project's root."""

from pathlib import Path

DATA = Path("artifacts/data")
INPUTS = Path("artifacts/inputs")
JUDGE = Path("artifacts/judge")
CODE = Path("artifacts/code")
ENCODED = Path("artifacts/encoded")
MODELS = Path("artifacts/models")
TEACHER = MODELS / "teacher"
TRIPLETS = Path("artifacts/triplets")
EVALUATION_SET = Path("artifacts/evaluation_set")
EVALUATIONS = Path("artifacts/evaluations")
EXPORTS = Path("artifacts/exports")
METRICS = Path("metrics")
CHECKPOINTS = Path(".checkpoints")
LOGS = Path("logs")
REPORT = Path("reports/index.html")
