"""`export:` which models leave the chain, and at how many steps."""

from pydantic import Field

from fewstep.config.base import Section


class ExportConfig(Section):
    """One entry of `export`, named by its model."""

    steps: int | None = Field(None, ge=1)
    """Steps the pipeline is set up for; null: what the model was made for."""
