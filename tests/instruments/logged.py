"""A program that writes to every kind of logger, with logging configured in the way asked for."""

from __future__ import annotations

import json
import logging
import logging.config
import os
from typing import Any

from celery.utils.log import get_task_logger
from flask import Flask

from celeriac import make_celery

WAY = os.environ["PROGRAM_LOGGING"]


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        names = ("name", "levelname", "task_id", "task_name")
        fields: dict[str, Any] = {name: getattr(record, name, "none") for name in names}
        return json.dumps({**fields, "message": record.getMessage()})


if WAY == "root":
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JSONFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": "INFO", "handlers": ["stderr"]},
        }
    )

flask_app = Flask(__name__)
flask_app.config["CELERY"] = {
    "broker_url": os.environ["PROGRAM_URL"],
    "result_backend": os.environ["PROGRAM_URL"],
    **json.loads(os.environ.get("PROGRAM_CONF", "{}")),
}
celery = make_celery(flask_app)

if WAY == "flask":
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    flask_app.logger.handlers[:] = [handler]
    flask_app.logger.setLevel(logging.INFO)

flask_app.logger.warning("imported")


@celery.task
def speak() -> None:
    flask_app.logger.warning("to Flask's logger")
    logging.getLogger("shop").warning("to a logger of its own")
    get_task_logger("shop.tasks").warning("to a task's logger")
    print("to standard output")


@flask_app.get("/")
def index() -> str:
    logging.getLogger("shop").warning("to a logger of its own")
    return str(speak.delay().id)
