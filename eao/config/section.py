"""What every section of an experiment file has in common."""

from __future__ import annotations

import pydantic

PositiveInt = pydantic.PositiveInt


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment too."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )
