"""Configuration of the documentation. Build it with `make docs`; pages load nothing from a network."""

import inspect
import re
from pathlib import Path

import vamf
from vamf import __version__

project = "vamf"
author = "The vamf authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"
smartquotes = False  # options start with two hyphens
html_theme = "furo"
html_title = f"vamf {version}"
html_show_copyright = False
html_show_sphinx = False

# Shapes in annotations (jaxtyping) are strings such as "batch *event", which are no Python expressions.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

COLON = "\ue000"
"""Stands for the colons of a field's docstring, where napoleon would look for a type."""


def show_as_written(app, what, name, obj, options, lines):
    """Docstrings are plain text: tables and formulas become literal blocks, and `*` in sentences stays a star."""
    shown, literal, in_section = [], False, False
    for line in lines:
        in_section = in_section or line.strip() in ("Args:", "Returns:", "Raises:")
        was, literal = literal, bool(line.strip()) and not in_section and line.startswith(("|", "    "))
        if literal and not was:
            shown += ["", "::", ""]
        elif was and not literal:
            shown.append("")
        shown.append("    " + line if literal else re.sub(r"\*(?=event)", r"\\*", line).replace("||", r"\|\|"))
    if what == "attribute":
        shown = [line.replace(":", COLON) for line in shown]
    lines[:] = [*shown, ""]


def restore_colons(app, what, name, obj, options, lines):
    """After napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def skip_generated(app, what, name, obj, skip, options):
    """Constructors that Python made (dataclasses, tuples, protocols): the fields say it all."""
    if name == "__new__":
        return True
    if name == "__init__":
        home = Path(vamf.__file__).parent
        return not (inspect.isfunction(obj) and Path(obj.__code__.co_filename).is_relative_to(home))
    return None


def setup(app):
    app.connect("autodoc-process-docstring", show_as_written, priority=400)
    app.connect("autodoc-process-docstring", restore_colons, priority=600)
    app.connect("autodoc-skip-member", skip_generated)
