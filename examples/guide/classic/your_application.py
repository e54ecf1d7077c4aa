# Flask's guide to background tasks, word for word; only the URLs differ.
# fmt: off

from celery import Celery
from flask import Flask


def make_celery(app):
    celery = Celery(
        app.import_name,
        backend=app.config['CELERY_RESULT_BACKEND'],
        broker=app.config['CELERY_BROKER_URL']
    )
    celery.conf.update(app.config)

    class ContextTask(celery.Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery.Task = ContextTask
    return celery


flask_app = Flask(__name__)
flask_app.config.update(
    CELERY_BROKER_URL='sqlite:///queue.sqlite3',
    CELERY_RESULT_BACKEND='sqlite:///queue.sqlite3'
)
celery = make_celery(flask_app)


@celery.task()
def add_together(a, b):
    return a + b
