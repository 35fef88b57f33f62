"""What every section of the pipeline file is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class _OutsideDigest:
    """Marker for fields that do not change a stage's result."""


Execution = _OutsideDigest()
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """Base of all sections: frozen, no unknown keys, no switch where a number is due, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for the number 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("it is not a switch")
        return value

    def digest_view(self) -> dict[str, Any]:
        """The section's values that change a result, as plain data."""
        view: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if Execution in info.metadata:
                continue
            view[name] = _plain(getattr(self, name))
        return view


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.digest_view()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
