"""The public surface: what users may import, and nothing else."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import celeriac
from celeriac import exceptions


def test_package_exports_these_names() -> None:
    assert celeriac.__all__ == ["Celeriac", "make_celery"]


def test_every_exported_name_can_be_imported() -> None:
    names = ", ".join(celeriac.__all__)

    # In a fresh process, where nothing else has imported Celery yet.
    subprocess.run([sys.executable, "-c", f"from celeriac import {names}"], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(celeriac, "Celery")


def test_directory_lists_the_exported_names() -> None:
    assert set(celeriac.__all__) <= set(dir(celeriac))


def test_exceptions_exports_what_it_defines() -> None:
    defined = [
        name
        for name, value in vars(exceptions).items()
        if getattr(value, "__module__", None) == exceptions.__name__
    ]

    assert exceptions.__all__ == defined


def test_version_is_that_of_the_distribution() -> None:
    assert celeriac.__version__ == importlib.metadata.version("celeriac")


def test_celery_can_be_imported_first() -> None:
    # kombu loads our entry point while Celery is half imported.
    subprocess.run([sys.executable, "-c", "import celery; celery.Celery().conf"], check=True)
