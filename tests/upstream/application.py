"""The Celery app of the worker process, with what its suite's fixtures say.

Run by ``celery -A tests.upstream.application worker``; :mod:`.plugin` does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from celery.contrib.testing.app import TestApp
from t.integration import tasks

#: Names the file that holds the settings of the suite's own app.
SETTINGS = "UPSTREAM_SETTINGS"

app = TestApp(config=json.loads(Path(os.environ[SETTINGS]).read_text()), enable_logging=True)
app.set_default()
app.register_task(tasks.ClassBasedAutoRetryTask)
