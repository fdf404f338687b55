"""The site: `sphinx-build -W --keep-going docs OUT`, which needs no network."""

import os
import sys
from pathlib import Path
from typing import Any

import flowsde

sys.path.insert(0, str(Path(__file__).parent))

project = "flowsde"
author = "The flowsde developers"
project_copyright = author
version = release = flowsde.__version__

extensions = [
    "docstrings",
    "intervals",
    "myst_nb",
    "notebooks",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# The table of pages is that of README.md, which the index includes.
exclude_patterns = ["README.md"]
html_theme = "sphinx_book_theme"
html_title = f"flowsde {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the side bar has the search
}

# Tutorials are executed by tests/test_tutorials.py, which keeps their outputs up to date.
nb_execution_mode = "off"
# Formulas are blocks of text: pages of MathJax would load it from another server.
myst_enable_extensions: list[str] = []
myst_heading_anchors = 3  # GitHub's

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what is returned has a name, not a type
napoleon_use_ivar = True  # not a second description of each field
napoleon_attr_annotations = False  # the signature has the types
default_role = "py:obj"  # `flowsde.run`, and code where there is no such name

# Links to other projects need their lists of names: without a network there are none.
intersphinx_mapping: dict[str, Any] = {}
if os.environ.get("FLOWSDE_DOCS_ONLINE"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/stable", None),
    }
