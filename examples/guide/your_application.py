"""The program of Flask's guide to background tasks; the factory comes from Celeriac."""

from flask import Flask

from celeriac import make_celery

flask_app = Flask(__name__)
celery = make_celery(flask_app)


@celery.task()
def add_together(a, b):
    return a + b
