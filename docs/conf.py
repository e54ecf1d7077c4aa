"""Sphinx's configuration; ``make docs`` builds with warnings as errors."""

from __future__ import annotations

import importlib.metadata

project = "Celeriac"
copyright = "2026 The Celeriac maintainers"
author = "The Celeriac maintainers"
release = importlib.metadata.version("celeriac")
version = release.partition(".dev")[0]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.extlinks"]
# Celery's, kombu's and Flask's own pages are linked by name; an inventory of them would have to
# be fetched, and the documentation builds without network.
extlinks = {
    "celery-guide": ("https://docs.celeryq.dev/en/stable/userguide/%s.html", "Celery: %s"),
    "flask-doc": ("https://flask.palletsprojects.com/en/stable/%s/", "Flask: %s"),
}
exclude_patterns = ["_build"]
default_role = "code"
add_module_names = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "Celeriac"
html_show_sourcelink = False
