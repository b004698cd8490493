"""Sections as one self-contained HTML page: that of a run, and that of a packed data set."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from essa_dist.report.section import Section


def fill(title: str, result: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    """A page as HTML: the result in a sentence, notes below it, sections. The template engine escapes all text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    template = environment.get_template("template.html")
    return template.render(title=title, result=result, notes=notes, sections=sections)


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
