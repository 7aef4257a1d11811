"""How Sphinx builds these pages; `make docs` calls it."""

from nemo_run import __version__

project = "nemo_run"
author = "the nemo_run authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_content = "both"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Docstrings write names between single backquotes, as Markdown does.
default_role = "code"

html_theme = "furo"
html_title = f"nemo_run {release}"
