"""Pages out of templates: all of them stand in `frame.html`, and nothing that goes into them can become markup."""

from __future__ import annotations

from importlib import resources
from typing import Any

from llmdistill.report import words

SHARED = ("frame.html", "parts.html")
"""What every page stands in, and pieces that pages are made of."""


def render_page(package: str, template: str, **values: Any) -> str:
    """A page as HTML text.

    Args:
        package: that holds the template, which extends the frame.
        values: what the template names, and what the frame does: `language`, `title`, `run_name`, `facts`, `settings`.
    """
    import jinja2

    def source(name: str) -> str:
        return resources.files(__package__ if name in SHARED else package).joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _clean(value: Any) -> Any:
    """What the template engine does to every value before it escapes it; our own charts pass as they are."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else words.clean(value)
