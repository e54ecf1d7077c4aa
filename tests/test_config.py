"""Flask's config becomes Celery's settings: every spelling, and nothing but Celery's."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import _TO_OLD_KEY
from celery.app.defaults import DEFAULTS
from celery.exceptions import ImproperlyConfigured
from flask import Flask

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.config import absolute_url
from celeriac.config import own_setting
from celeriac.config import read_settings
from celeriac.engines import EngineConfigurationError
from celeriac.exceptions import ConfigurationWarning

CANARY = "canary-7f3a"
#: Result backends whose options have legacy names without CELERY in them.
BACKENDS = {
    "s3_": "s3",
    "gcs_": "gs",
    "cassandra_": "cassandra",
    "azureblockblob_": "azureblockblob",
    "cosmosdbsql_": "cosmosdbsql",
    "database_": "db",
}


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask(__name__, instance_path=str(tmp_path / "instance"))
    app.config["SECRET_KEY"] = CANARY
    return app


def a_value_for(name: str) -> Any:
    """Return a value that the setting does not have by default, of the right kind."""
    default = DEFAULTS[name]
    if name == "broker_url" or name.endswith(("read_url", "write_url")):
        return "memory://somewhere"
    if name == "result_backend":
        return "cache+memory://"
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 7
    if isinstance(default, timedelta):
        return timedelta(hours=3)
    if isinstance(default, dict):
        return {"some": "thing"}
    if isinstance(default, (list, tuple)):
        return ["json", "yaml"]
    return "Europe/Zurich" if name == "timezone" else "some value"


def legacy_key(name: str) -> str:
    return str(_TO_OLD_KEY[name])


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_every_setting_means_the_same_in_every_spelling(name: str, app: Flask) -> None:
    value = a_value_for(name)
    spellings: list[dict[str, Any]] = [
        {"CELERY": {name: value}},
        {"CELERY": {name.upper(): value}},
        {"CELERY": {legacy_key(name): value}},
        {f"CELERY_{name.upper()}": value},
        {legacy_key(name): value},
    ]

    found = []
    for index, config in enumerate(spellings):
        other = Flask(f"app{index}", instance_path=app.instance_path)
        for prefix, backend in BACKENDS.items():
            if name.startswith(prefix):
                other.config["CELERY_RESULT_BACKEND"] = backend
        other.config.update(config)
        celery = Celeriac(other, set_as_current=False)
        found.append((getattr(celery.conf, name), celery.conf[name]))

    assert found == [(value, value)] * len(spellings)


def test_our_own_settings_are_spelt_like_celerys(app: Flask) -> None:
    app.config["CELERY_WORKER_GRACE_PERIOD"] = "30"

    celery = Celeriac(app, set_as_current=False)

    assert own_setting(celery.conf, "worker_grace_period") == 30.0
    assert celery.conf.worker_health_address is None


def test_our_own_settings_are_known_to_a_plain_celery() -> None:
    plain = Celery(set_as_current=False)

    assert own_setting(plain.conf, "worker_grace_period") == 25.0
    plain.conf.worker_grace_period = None
    assert own_setting(plain.conf, "worker_grace_period") is None


def test_a_grace_period_that_is_no_number_is_refused(app: Flask) -> None:
    app.config["CELERY"] = {"worker_grace_period": "long"}
    celery = Celeriac(app, set_as_current=False)

    with pytest.raises(ImproperlyConfigured) as raised:
        own_setting(celery.conf, "worker_grace_period")
    assert str(raised.value) == (
        "worker_grace_period is 'long', and a number of seconds is needed."
    )


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("FLASK_CELERY__broker_url", "memory://", "broker_url", "memory://"),
        ("FLASK_CELERY__BROKER_URL", "memory://", "broker_url", "memory://"),
        ("FLASK_CELERY_BROKER_URL", "memory://", "broker_url", "memory://"),
        ("FLASK_BROKER_URL", "memory://", "broker_url", "memory://"),
        ("FLASK_CELERY__task_always_eager", "true", "task_always_eager", True),
        ("FLASK_CELERY_TASK_ALWAYS_EAGER", "True", "task_always_eager", True),
        ("FLASK_CELERY_ALWAYS_EAGER", "False", "task_always_eager", False),
        ("FLASK_CELERYD_CONCURRENCY", "3", "worker_concurrency", 3),
        ("FLASK_CELERY_RESULT_EXPIRES", "60", "result_expires", 60),
        ("FLASK_CELERY__task_routes", '{"a.*": "b"}', "task_routes", {"a.*": "b"}),
        (
            "FLASK_CELERY__broker_transport_options__visibility_timeout",
            "10",
            "broker_transport_options",
            {"visibility_timeout": 10},
        ),
    ],
)
def test_environment_variables_of_flask_are_read(
    variable: str, text: str, name: str, value: Any, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    app.config.from_prefixed_env()

    assert getattr(make_celery(app).conf, name) == value


def test_documentation_of_flask_2_1_called_the_mapping_celery_config(app: Flask) -> None:
    app.config["CELERY_CONFIG"] = {"broker_url": "memory://", "result_backend": "cache+memory://"}

    conf = make_celery(app).conf

    assert (conf.broker_url, conf.result_backend) == ("memory://", "cache+memory://")


def test_spellings_are_mixed_freely(app: Flask) -> None:
    app.config.update(
        CELERY={"task_acks_late": True, "CELERY_TASK_SERIALIZER": "yaml"},
        CELERY_BROKER_URL="memory://",
        CELERYBEAT_SCHEDULE={"tick": {"task": "tick", "schedule": 1}},
        CELERY_TASK_TRACK_STARTED=True,
        task_time_limit=5,
    )

    conf = make_celery(app).conf

    assert conf.task_acks_late
    assert conf.task_serializer == "yaml"
    assert conf.broker_url == "memory://"
    assert conf.beat_schedule == {"tick": {"task": "tick", "schedule": 1}}
    assert conf.task_track_started
    assert conf.task_time_limit == 5


# Mistakes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"CELERY_TASK_ALWAYS_EAGR": True},
            "Celery has no setting CELERY_TASK_ALWAYS_EAGR: did you mean CELERY_TASK_ALWAYS_EAGER?",
        ),
        (
            {"CELERYD_CONCURENCY": 3},
            "Celery has no setting CELERYD_CONCURENCY: did you mean CELERYD_CONCURRENCY?",
        ),
        (
            {"CELERY": {"broker_ulr": "memory://"}},
            "Celery has no setting CELERY['broker_ulr']: did you mean broker_url?",
        ),
        (
            {"CELERY_FOO": 1},
            "Celery has no setting CELERY_FOO: see Celery's list of settings.",
        ),
        (
            {"CELERY_QUEUE": 1},
            "Celery has no setting CELERY_QUEUE: did you mean CELERY_QUEUES?",
        ),
        (
            {"CELERY": {"result_expires": 1}, "CELERY_RESULT_EXPIRES": 2},
            "CELERY['result_expires'] and CELERY_RESULT_EXPIRES set result_expires to different "
            "values: CELERY['result_expires'] is used. Remove the other.",
        ),
        (
            {"CELERY_TASK_RESULT_EXPIRES": 1, "CELERY_RESULT_EXPIRES": 2},
            "CELERY_RESULT_EXPIRES and CELERY_TASK_RESULT_EXPIRES set result_expires to different "
            "values: CELERY_RESULT_EXPIRES is used. Remove the other.",
        ),
    ],
)
def test_mistake_warns_and_points_at_its_caller(
    config: dict[str, Any], message: str, app: Flask
) -> None:
    app.config.update(config)

    with pytest.warns(ConfigurationWarning) as caught:
        make_celery(app)

    assert [str(warning.message) for warning in caught] == [message]
    assert caught[0].filename == __file__


def test_setting_of_a_plugin_is_kept(app: Flask) -> None:
    app.config["CELERY"] = {"redbeat_redis_url": "redis://beat"}

    with pytest.warns(ConfigurationWarning, match="redbeat_redis_url"):
        conf = make_celery(app).conf

    assert conf.redbeat_redis_url == "redis://beat"


def test_mapping_that_is_none_is_refused(app: Flask) -> None:
    app.config["CELERY"] = "redis://localhost"

    with pytest.raises(ImproperlyConfigured) as caught:
        make_celery(app)

    assert str(caught.value) == (
        "CELERY in Flask's config is a str, and a mapping of settings is needed: "
        "CELERY = {'broker_url': 'redis://localhost'}."
    )


# Nothing but Celery's


def test_no_other_key_of_flask_reaches_celery(app: Flask) -> None:
    app.config.update(
        CELERY_BROKER_URL="memory://",
        S3_SECRET_ACCESS_KEY=CANARY,
        DATABASE_URL=CANARY,
        DATABASE_TABLE_SCHEMAS=CANARY,
        lower_case_of_my_own=CANARY,
        SQLALCHEMY_DATABASE_URI=CANARY,
    )

    conf = make_celery(app).conf
    conf.update(app.config)
    conf.update(dict(app.config.items()) | {"lower_case_of_my_own": None})
    conf.update(SECRET_KEY=CANARY)

    assert conf.broker_url == "memory://"
    assert CANARY not in repr(conf)
    assert CANARY not in repr(conf.table(with_defaults=True, censored=False))


def test_legacy_name_of_a_result_backend_counts_where_that_backend_is_used(app: Flask) -> None:
    config = {"S3_BUCKET": "results", "CELERY_RESULT_BACKEND": "s3://"}

    assert read_settings(config) == {"s3_bucket": "results", "result_backend": "s3://"}
    assert read_settings({"S3_BUCKET": "pictures", "CELERY_S3_BUCKET": "results"}) == {
        "s3_bucket": "results"
    }


# Afterwards


def test_settings_may_be_changed_afterwards_in_any_spelling(app: Flask) -> None:
    app.config.update(CELERY_RESULT_BACKEND="cache+memory://", CELERY_ALWAYS_EAGER=True)
    celery = make_celery(app)

    celery.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 1}}
    celery.conf.CELERYD_CONCURRENCY = 2
    celery.conf["CELERY_TASK_ACKS_LATE"] = True
    celery.conf.update({"CELERY_TASK_SERIALIZER": "yaml"}, task_track_started=True)

    assert celery.conf.beat_schedule == {"tick": {"task": "tick", "schedule": 1}}
    assert celery.conf.worker_concurrency == 2
    assert celery.conf.task_acks_late
    assert celery.conf.task_serializer == "yaml"
    assert celery.conf.task_track_started
    assert celery.conf.task_always_eager
    assert celery.conf["CELERY_TASK_ALWAYS_EAGER"]
    # And after it was read.
    celery.conf.CELERYD_CONCURRENCY = 4
    celery.conf.update(app.config)
    assert celery.conf.worker_concurrency == 4


def test_explicit_argument_wins_over_config(app: Flask) -> None:
    app.config.update(CELERY_BROKER_URL="redis://config", CELERY_RESULT_BACKEND="redis://config")

    conf = make_celery(app, broker="memory://", backend="cache+memory://").conf

    assert (conf.broker_url, conf.result_backend) == ("memory://", "cache+memory://")


def test_environment_variables_of_celery_win(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    app.config["CELERY_BROKER_URL"] = "redis://config"
    monkeypatch.setenv("CELERY_BROKER_URL", "sqlite:///from_environment.db")

    conf = make_celery(app).conf

    expected = f"sqlite:///{app.instance_path}/from_environment.db"
    assert (conf.broker_url, conf.broker_write_url) == (expected, expected)
    assert conf.result_backend == expected


def test_more_settings_come_from_an_object(app: Flask) -> None:
    app.config["CELERY_TASK_ACKS_LATE"] = True
    celery = make_celery(app)
    assert celery.conf.task_acks_late

    celery.config_from_object({"CELERYD_CONCURRENCY": 5, "result_expires": 9})

    assert celery.conf.worker_concurrency == 5
    assert celery.conf.result_expires == 9
    assert celery.conf.task_acks_late
    celery.conf.CELERYD_CONCURRENCY = 6
    assert celery.conf.worker_concurrency == 6


def test_copy_of_the_settings_is_independent(app: Flask) -> None:
    conf = make_celery(app).conf
    copied = conf.copy()
    copied.CELERYD_CONCURRENCY = 9

    assert copied.broker_url == conf.broker_url
    assert conf.worker_concurrency is None


# Defaults


def test_nothing_configured_is_a_file_in_the_instance_folder(app: Flask) -> None:
    conf = make_celery(app).conf

    expected = f"sqlite:///{app.instance_path}/celeriac.sqlite3"
    assert (conf.broker_url, conf["broker_url"]) == (expected, expected)
    assert (conf.result_backend, conf["result_backend"]) == (expected, expected)
    assert conf.broker_connection_retry_on_startup is True
    assert stat.S_IMODE(os.stat(app.instance_path).st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///", "celeriac.sqlite3"),
        ("sqlite://", "celeriac.sqlite3"),
        ("sqlite:///?durability=normal", "celeriac.sqlite3?durability=normal"),
        ("sqlite:///a/queue.db?busy_timeout=3", "a/queue.db?busy_timeout=3"),
    ],
)
def test_relative_file_stands_in_the_instance_folder(url: str, file: str, app: Flask) -> None:
    app.config["CELERY"] = {"broker_url": url}

    conf = make_celery(app).conf

    assert conf.broker_url == f"sqlite:///{app.instance_path}/{file}"
    assert conf.result_backend == conf.broker_url


def test_odd_folder_is_quoted_for_the_url(tmp_path: Path) -> None:
    assert absolute_url("sqlite:///", "/srv/a b?c") == "sqlite:////srv/a%20b%3Fc/celeriac.sqlite3"


def test_absolute_file_is_left_alone(app: Flask) -> None:
    app.config["CELERY_BROKER_URL"] = "sqlite:////var/lib/app/queue.db"

    assert make_celery(app).conf.broker_url == "sqlite:////var/lib/app/queue.db"
    assert not Path(app.instance_path).exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:1/2", "redis://127.0.0.1:1/2"),
        # Its certificates are a setting of their own for the result backend.
        ("rediss://127.0.0.1:1/2", None),
        # Several, one of which answers: a result backend can not be told so.
        ("redis://127.0.0.1:1;redis://127.0.0.1:2", None),
        ("amqp://127.0.0.1:1", None),
    ],
)
def test_redis_keeps_the_results_too(url: str, expected: str | None, app: Flask) -> None:
    app.config["CELERY_BROKER_URL"] = url

    assert make_celery(app).conf.result_backend == expected


def test_results_can_be_disabled(app: Flask) -> None:
    app.config["CELERY"] = {"broker_url": "redis://127.0.0.1:1", "result_backend": "disabled"}

    assert "results:disabled" in make_celery(app).bugreport()


def test_other_broker_has_no_results_by_default(app: Flask) -> None:
    app.config["CELERY_BROKER_URL"] = "memory://"
    celery = make_celery(app)

    assert celery.conf.result_backend is None
    celery.conf.broker_url = "sqlite:///"
    assert celery.conf.result_backend == celery.conf.broker_url


def test_broker_given_by_parts_is_no_file(app: Flask) -> None:
    app.config["BROKER_TRANSPORT"] = "memory"

    assert make_celery(app).conf.broker_url is None
    assert not Path(app.instance_path).exists()


def test_folder_that_can_not_be_made_is_no_error_yet(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "instance").write_text("in the way")

    make_celery(app)


# URLs that can not work


@pytest.mark.parametrize(
    ("key", "url", "message"),
    [
        (
            "CELERY_BROKER_URL",
            "rediz://localhost",
            "broker_url is a rediz:// URL, which neither Celery nor Celeriac knows: did you mean "
            "redis://? With sqlite:/// no server is needed.",
        ),
        (
            "CELERY_RESULT_BACKEND",
            "quux://localhost",
            "result_backend is a quux:// URL, which neither Celery nor Celeriac knows: did you "
            "mean sqlite://? With sqlite:/// no server is needed.",
        ),
        (
            "CELERY_BROKER_URL",
            "redis://localhost",
            "broker_url is a redis:// URL, and the package redis is not installed: "
            "pip install 'celery[redis]'.",
        ),
        (
            "CELERY_RESULT_BACKEND",
            "rediss://localhost",
            "result_backend is a rediss:// URL, and the package redis is not installed: "
            "pip install 'celery[redis]'.",
        ),
        (
            "CELERY_BROKER_URL",
            ["amqp://one", "amqq://two"],
            "broker_url is a amqq:// URL, which neither Celery nor Celeriac knows: did you mean "
            "amqp://? With sqlite:/// no server is needed.",
        ),
    ],
)
def test_url_that_can_not_work_is_refused_at_once(
    key: str, url: Any, message: str, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "redis", None)
    app.config[key] = url

    with pytest.raises(ImproperlyConfigured) as caught:
        make_celery(app)

    assert str(caught.value) == message
    assert "celery" not in app.extensions


def test_queue_in_memory_is_refused(app: Flask) -> None:
    app.config["CELERY_BROKER_URL"] = "sqlite:///:memory:"

    with pytest.raises(EngineConfigurationError, match=r"^sqlite:///:memory: names no file\."):
        make_celery(app)


@pytest.mark.parametrize(
    "url", ["amqp://", "amqps://a;amqps://b", "sqla+sqlite://", "filesystem://"]
)
def test_brokers_of_kombu_are_let_through(url: str, app: Flask) -> None:
    app.config["CELERY_BROKER_URL"] = url

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_celery(app).conf.broker_url == url


@pytest.mark.parametrize("url", ["/tmp/queue.db", "./queue.db", ":memory:"])
def test_path_that_is_no_url_is_refused(url: str) -> None:
    app = Flask("program")
    app.config["CELERY_BROKER_URL"] = url

    with pytest.raises(ImproperlyConfigured) as caught:
        make_celery(app)

    assert str(caught.value) == (
        f"broker_url is {url!r}, which is no URL. For a queue file write sqlite:///name.sqlite3, "
        "which is in the instance folder, or sqlite:////absolute/path.sqlite3."
    )


def test_empty_url_is_as_good_as_none(tmp_path: Path) -> None:
    app = Flask("program", instance_path=str(tmp_path))
    app.config.update(CELERY_BROKER_URL="", CELERY_RESULT_BACKEND="")

    celery = make_celery(app)

    assert celery.conf.broker_url == f"sqlite:///{tmp_path}/celeriac.sqlite3"
    assert celery.conf.result_backend == celery.conf.broker_url
