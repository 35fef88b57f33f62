"""Every method by its name in a pipeline file, and the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from llmdistill.config.base import Settings
from llmdistill.vision.config import Data, Net, Protocol
from llmdistill.vision.kd.plain import Plain
from llmdistill.vision.kd.response import Response


def _name_of(value: Any) -> str | None:
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


AnyMethod = Annotated[
    Annotated[Plain, Tag("plain")] | Annotated[Response, Tag("response")],
    Discriminator(_name_of),
]


class KdPipeline(Settings):
    """One student, its teacher, and the methods that are compared under one protocol.

    `teacher_protocol` None trains the teacher as the students are, with the first seed.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=100)]
    run_dir: str | None = None
    data: Data = Data()
    student: Net
    teacher: Net
    protocol: Protocol = Protocol()
    teacher_protocol: Protocol | None = None
    methods: Annotated[tuple[AnyMethod, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_row_each(self) -> KdPipeline:
        titles = [method.title for method in self.methods]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice:
            raise ValueError(f"two methods are called {twice}: give them labels")
        return self

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return Path(self.run_dir) if self.run_dir else Path("data") / "runs" / self.name
