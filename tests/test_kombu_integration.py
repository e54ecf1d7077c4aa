"""kombu's own integration classes, from its source distribution, on our transport.

They are not part of kombu's wheel, so the source distribution of the installed version is
fetched from the package index, once, into the user's cache.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import kombu
import pytest
from sources import cache
from sources import fetch
from sources import read


def _load(archive: Path, version: str) -> ModuleType:
    path = cache() / f"kombu_{version}_common.py"
    path.write_bytes(read(archive, "t/integration/common.py"))
    spec = importlib.util.spec_from_file_location("kombu_common", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_archive = fetch("kombu", kombu.__version__)
if _archive is None:
    _reason = f"kombu {kombu.__version__}'s source distribution could not be fetched"
    if os.environ.get("CI"):
        pytest.fail(_reason, pytrace=False)
    pytest.skip(_reason, allow_module_level=True)

common = _load(_archive, kombu.__version__)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[kombu.Connection]:
    with kombu.Connection(f"sqlite:///{tmp_path}/queue.sqlite3") as connection:
        yield connection


@pytest.fixture
def invalid_connection(tmp_path: Path) -> kombu.Connection:
    return kombu.Connection(f"sqlite:///{tmp_path}/no/such/folder/queue.sqlite3")


class TestBasicFunctionality(common.BasicFunctionality):  # type: ignore[misc, name-defined]
    pass


class TestExchangeTypes(common.BaseExchangeTypes):  # type: ignore[misc, name-defined]
    pass


class TestTimeToLive(common.BaseTimeToLive):  # type: ignore[misc, name-defined]
    pass


class TestPriority(common.BasePriority):  # type: ignore[misc, name-defined]
    # Higher first, as with RabbitMQ, so nothing of the class needs to be overridden.
    pass


class TestMessage(common.BaseMessage):  # type: ignore[misc, name-defined]
    pass
