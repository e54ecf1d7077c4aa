"""A small site that summarises uploaded CSV files in the background.

:mod:`.views` takes a file and answers at once; :mod:`.tasks` does the work in a worker, step by
step; :mod:`.table` knows CSV, :mod:`.mail` knows mail, and :mod:`.store` keeps everything in the
instance folder.
"""

from __future__ import annotations

import os

from celery.schedules import crontab
from flask import Flask


def create_app(instance_path: str | None = None) -> Flask:
    """Create the site; everything that it keeps goes into its instance folder.

    :param instance_path: another instance folder than Flask's own choice.
    """
    app = Flask(__name__, instance_path=instance_path)
    os.makedirs(app.instance_path, exist_ok=True)
    _configure(app)
    _register(app)
    return app


def _configure(app: Flask) -> None:
    app.config.from_mapping(
        MAX_CONTENT_LENGTH=64 * 2**20,
        MAIL_HOST="127.0.0.1",
        MAIL_PORT=1025,
        MAIL_SENDER="uploads@example.org",
        MAIL_RECIPIENT="analyst@example.org",
        CELERY={
            # A task is acknowledged when it is done: if its worker dies, another runs it again.
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "beat_schedule": {
                # Five past midnight, UTC: the day that it reports is over.
                "nightly-digest": {
                    "task": "uploads.tasks.send_digest",
                    "schedule": crontab(hour=0, minute=5),
                }
            },
        },
    )
    # FLASK_MAIL_PORT=2525, FLASK_CELERY__BROKER_URL=redis://localhost, …
    app.config.from_prefixed_env()


def _register(app: Flask) -> None:
    from . import mail
    from . import tasks
    from . import views

    tasks.celery.init_app(app)
    app.register_blueprint(views.blueprint)
    app.cli.add_command(mail.receive_mail)
