"""`export:` which models are exported as diffusers pipelines, and for how many steps."""

from pydantic import Field

from fewstep.config.base import Section


class ExportConfig(Section):
    """One entry of `export`, named by its model."""

    steps: int | None = Field(None, ge=1)
    """Step count of the pipeline; null: the one the model was trained for."""
