"""The API reference: `make docs` writes build/docs, with warnings as errors."""

from spcl_fast import __version__

project = "spcl_fast"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # `name` in a docstring
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
html_theme = "alabaster"
html_show_copyright = html_show_sourcelink = False


def formulas_as_written(app, what, name, obj, options, lines):
    """Mark as literal what is indented after a blank line."""
    marked, depth, before, is_literal = [], 0, "", False
    for line in lines:
        if line.strip():
            indent = len(line) - len(line.lstrip())
            if indent > depth and not before:
                marked += [" " * depth + "::", ""]
                is_literal = True
            elif indent <= depth:
                is_literal = False
            depth = depth if is_literal else indent
        marked.append(line)
        before = line.strip()
    lines[:] = marked


def setup(app):
    """Connect the function above to autodoc, before napoleon."""
    app.connect("autodoc-process-docstring", formulas_as_written, priority=400)
