"""The site: `make docs` builds it from these pages and from docstrings."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from wsjax import __version__

project = "wsjax"
author = "the wsjax authors"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "figures"]

html_theme = "sphinx_book_theme"
html_title = "wsjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": "https://github.com/wsjax/wsjax",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_source_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],
}

myst_enable_extensions = ["deflist", "dollarmath"]
# Links such as guide.md#fewer-votes work on GitHub, and here with this.
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.ipynb"]

# Docstrings are plain text with `code` between backticks.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style"), "Source"]


def skip(app, what, name, value, skipped, options):
    """Leaves out the fields of named tuples: the class tells of each."""
    del app, what, name, options
    text = getattr(value, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else skipped


def setup(app):
    app.connect("autodoc-skip-member", skip)
