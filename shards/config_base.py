"""The base of every configuration section: frozen, no unknown keys, one description per field."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a run's configuration. Fields document themselves with the string below them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
