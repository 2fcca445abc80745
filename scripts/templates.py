"""The files below templates/, Jinja2 templates of what is configured, generated and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.machine.files import ROOT

TEMPLATES = ROOT / "templates"


def environment(*directories: Path, markup: bool = False) -> Environment:
    """Return the Jinja2 environment of the templates in the first of `directories` (default: templates/) that has it.

    With `markup` values are escaped for XML and HTML. A variable that is not
    given raises jinja2.UndefinedError when the template is rendered.
    """
    return Environment(
        loader=FileSystemLoader(directories or (TEMPLATES,)),
        undefined=StrictUndefined,
        autoescape=markup,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """Return templates/<template>.xml.j2 with `values`, which get XML-escaped."""
    return environment(markup=True).get_template(f"{template}.xml.j2").render(values)
