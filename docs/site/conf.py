"""Sphinx's settings for the pages that ``docs/make_site.py`` lays out."""

from importlib import metadata

project = "regframe"
author = "The regframe developers"
copyright = f"2026, {author}"
try:
    release = metadata.version("regframe")
except metadata.PackageNotFoundError:
    release = "unreleased"
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
nb_execution_mode = "off"  # what runs is run by the tests
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # blocks of csv have no lexer

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"regframe {release}"
html_static_path: list[str] = []
html_show_sourcelink = False
html_copy_source = False
