"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "msan"
author = "the msan authors"
copyright = "the msan authors. Apache-2.0"  # noqa: A001 - Sphinx's name for it
version = release = version_of("msan")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_pages",
    "schema_pages",
]
exclude_patterns = ["extensions", "reference/generated"]
suppress_warnings = ["myst.domains"]

# Pages read the same on GitHub: plain Markdown, and the anchors that GitHub gives to headings.
myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # it would make dashes of the hyphens of options
copybutton_exclude = ".linenos, .gp, .go"

# What a module offers is its __all__, in the order of the source.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Types of the standard library and of other packages have no pages here, and their indexes need a network. Of ours, the
# modules on the reference pages are linked; every other one is a detail.
REFERENCE = [path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "reference").glob("api-*.rst")]
MODULES = "|".join(re.escape(name) for text in REFERENCE for name in re.findall(r"automodule:: (\S+)", text))
nitpick_ignore_regex = [
    (r"py:.*", r"(pathlib|collections|typing|types|os|numpy|np|torch|onnx|PIL|logging|contextlib|enum|abc)(\..*)?"),
    (r"py:.*", rf"(tuple\[~)?(?!({MODULES})\.[^.]+(\.[^.]+)?$)msan\w*\..*"),
    (r"py:class", r"Path|Module|msan_runtime\.deblur\.Level"),
]

html_theme = "furo"
html_title = f"msan {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

# For `make docs-linkcheck`: pages that ask robots to stay away.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 20


def setup(app: Sphinx) -> None:
    """Notes under constants and attributes are sentences: Napoleon would take what precedes a colon for a type."""
    notes: list[list[str]] = []

    def keep(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        notes.append(list(lines))

    def put_back(_app: Sphinx, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        kept = notes.pop()
        if what in ("attribute", "data", "property"):
            lines[:] = kept

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)
