"""Flask's config in, Celery's settings out.

A setting may be spelt in any of Celery's ways, freely mixed: in the mapping ``CELERY`` by its new
name, as ``CELERY_`` and the new name in upper case, or by its legacy name.
:func:`read_settings` picks Celery's settings, and nothing else, out of a config;
:class:`Configuration` is the ``celery.conf`` that keeps it so afterwards and knows the defaults;
:func:`check_urls` refuses at once what could not work later. :mod:`celeriac.extension` uses all
three.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any
from typing import NamedTuple
from urllib.parse import quote

from celery.app.backends import BACKEND_ALIASES
from celery.app.defaults import flatten
from celery.app.defaults import NAMESPACES
from celery.app.defaults import Option
from celery.app.utils import Settings
from celery.exceptions import ImproperlyConfigured
from celery.utils.imports import load_extension_class_names
from celery.utils.serialization import strtobool
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from .engines import is_engine_url
from .engines import open_engine
from .warning import warn

#: Keys of a Flask config under which a mapping of settings may stand. The second is what Flask's
#: documentation used in versions 2.1 and 2.2.
MAPPINGS = ("CELERY", "CELERY_CONFIG")
#: The queue file of an app that configured no broker, in its instance folder.
DEFAULT_FILE = "celeriac.sqlite3"

#: Settings of our own, which are written like Celery's; see :func:`own_setting`.
OWN: dict[str, Any] = {
    # How long a worker that was told to end waits for what runs (seconds); None for ever.
    "worker_grace_period": Option(25.0, type="float"),
    # Where a worker answers HTTP requests about its health: "127.0.0.1:8100".
    "worker_health_address": Option(None, type="string"),
}

_OPTIONS: dict[str, Any] = {**dict(flatten(NAMESPACES)), **OWN}


def _legacy_names(namespace: str, key: str, option: Any) -> list[tuple[str, str]]:
    name = namespace + key
    return [(old.format(key).upper(), name) for old in option.old or {name}]


_LEGACY: dict[str, str] = dict(flatten(NAMESPACES, keyfilter=_legacy_names))
_PREFIXED = {f"CELERY_{name.upper()}": name for name in _OPTIONS}
_UPPER = {name.upper(): name for name in _OPTIONS}
#: Every spelling of every setting, and its new name.
_NAMES = {**_UPPER, **_LEGACY, **_PREFIXED, **{name: name for name in _OPTIONS}}

# These legacy names do not say that they are Celery's, and applications use them for their own
# (S3_SECRET_ACCESS_KEY above all): they count only where the result backend is the one meant.
_BACKENDS_OF = {
    "S3_": ("s3",),
    "GCS_": ("gs",),
    "CASSANDRA_": ("cassandra",),
    "AZUREBLOCKBLOB_": ("azureblockblob",),
    "COSMOSDBSQL_": ("cosmosdbsql",),
    "DATABASE_": ("db", "database"),
}


_PREFIX = re.compile("^CELERY(D|BEAT)?_")


class _Given(NamedTuple):
    """One setting as somebody wrote it."""

    name: str
    value: Any
    #: As it stands in the config, for messages.
    spelling: str
    #: The lower one wins.
    rank: int


_URLS = frozenset({"broker_url", "broker_read_url", "broker_write_url", "result_backend"})


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Celery's settings among the keys of a Flask config, under their new names.

    Of a setting given twice, the one in the mapping ``CELERY`` wins over ``CELERY_`` with a new
    name, and that over a legacy name; when the values differ, a :exc:`.ConfigurationWarning`
    names both. So does one about a ``CELERY_…`` name that Celery does not have. Such a name in
    the mapping ``CELERY`` is kept, since plugins of Celery have settings too.
    """
    found: dict[str, _Given] = {}
    for given in _own(sorted(_all_given(config), key=lambda given: given.rank)):
        first = found.setdefault(given.name, given)
        if first.value != given.value:
            warn(
                f"{first.spelling} and {given.spelling} set {given.name} to different values: "
                f"{first.spelling} is used. Remove the other."
            )
    # What a deployment leaves empty (CELERY_BROKER_URL=) is not given: Celery would take an empty
    # URL for a RabbitMQ on this machine.
    return {name: given.value for name, given in found.items() if not _is_empty_url(given)}


def _is_empty_url(given: _Given) -> bool:
    return given.value == "" and given.name in _URLS


def own_setting(conf: Any, name: str) -> Any:
    """Return one of :data:`OWN` out of a ``celery.conf``, be it ours or that of a plain Celery.

    :raises ImproperlyConfigured: when it is no number, and should be one.
    """
    option = OWN[name]
    value = conf.get(name, option.default)
    if value is None or option.type != "float":
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ImproperlyConfigured(
            f"{name} is {value!r}, and a number of seconds is needed."
        ) from None


def setting_name(spelling: str) -> str:
    """Return the new name of a setting; a name that Celery does not have is returned as it is."""
    return _NAMES.get(spelling, spelling)


def _all_given(config: Mapping[str, Any]) -> Iterator[_Given]:
    for key, value in config.items():
        if key in MAPPINGS:
            yield from _given_in_mapping(key, value)
        elif key in _PREFIXED or key in _OPTIONS:
            yield _given(_NAMES[key], value, key, rank=2)
        elif key in _LEGACY:
            yield _given(_LEGACY[key], value, key, rank=3)
        elif isinstance(key, str) and key.startswith(("CELERY_", "CELERYD_", "CELERYBEAT_")):
            _warn_unknown(key, key, (*_PREFIXED, *_LEGACY))


def _given_in_mapping(mapping: str, settings: Any) -> Iterator[_Given]:
    if not isinstance(settings, Mapping):
        raise ImproperlyConfigured(
            f"{mapping} in Flask's config is a {type(settings).__name__}, and a mapping of "
            f"settings is needed: {mapping} = {{'broker_url': 'redis://localhost'}}."
        )
    for key, value in settings.items():
        spelling = f"{mapping}[{key!r}]"
        if key not in _NAMES:
            _warn_unknown(spelling, key, _OPTIONS)
        is_legacy = key in _LEGACY and key not in _PREFIXED and key not in _UPPER
        yield _given(setting_name(key), value, spelling, rank=1 if is_legacy else 0)


def _given(name: str, value: Any, spelling: str, rank: int) -> _Given:
    if isinstance(value, str) and name in _OPTIONS and _OPTIONS[name].type == "bool":
        # From an environment variable: "False" is true otherwise. Not every string is meant as
        # a truth value (broker_use_ssl, say), so others stay.
        with suppress(TypeError):
            value = strtobool(value)
    return _Given(name, value, spelling, rank)


def _own(settings: list[_Given]) -> Iterator[_Given]:
    backends = [given.value for given in settings if given.name == "result_backend"]
    used = _scheme(os.environ.get("CELERY_RESULT_BACKEND") or next(iter(backends), None))
    for given in settings:
        prefix = next((prefix for prefix in _BACKENDS_OF if given.spelling.startswith(prefix)), "")
        if not prefix or used in _BACKENDS_OF[prefix]:
            yield given


def _warn_unknown(spelling: str, key: str, names: Iterable[str]) -> None:
    # Without what they all begin with, which would make any two of them look alike.
    own = {_PREFIX.sub("", name): name for name in reversed([*names])}
    nearest = difflib.get_close_matches(_PREFIX.sub("", key), own, n=1, cutoff=0.75)
    advice = f"did you mean {own[nearest[0]]}?" if nearest else "see Celery's list of settings."
    warn(f"Celery has no setting {spelling}: {advice}")


class Configuration(Settings):
    """Celery's ``conf`` with every spelling of a setting and the defaults of an app's folder.

    Whatever is assigned to it, later too, is stored under the new name, so that Celery never
    meets old and new names mixed, which it refuses.
    """

    # Celery's mapping treats attributes as settings, so its own state goes into ``__dict__``.
    _folder: str | None
    maps: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["_folder"] = None

    def settle(self, folder: str) -> None:
        """Make relative queue files, and the default one, stand in ``folder``."""
        self.__dict__["_folder"] = folder

    def copy(self) -> Configuration:
        # Celery's own passes its constructor the wrong arguments before 5.7
        # (utils/collections.py:ChainMap.copy).
        copied = type(self)(dict(self.changes or ()), self.defaults, self._keys, self.prefix)
        copied.__dict__.update(key_t=self.key_t, _folder=self._folder)
        return copied

    __copy__ = copy

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(setting_name(key), value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take over settings, in any spelling, out of a mapping that may hold other things.

        So ``celery.conf.update(app.config)`` leaves Flask's own keys where they are. Names in
        lower case that Celery does not have are kept, as they may be a plugin's.
        """
        given = dict(*args, **kwargs)
        foreign = {key: value for key, value in given.items() if key not in _NAMES}
        plugins = {key: value for key, value in foreign.items() if key.islower()}
        super().update({**plugins, **read_settings(given)})

    def __missing__(self, key: str) -> Any:
        name = setting_name(key)
        if name != key:
            return self[name]
        if name in OWN:
            return OWN[name].default
        raise KeyError(key)

    def __getitem__(self, key: str) -> Any:
        # Celery's own looks for three spellings of the key in each mapping, at 2 µs; a call of
        # a task reads eight settings.
        for settings in self.maps:
            if key in settings:
                value = settings[key]
                break
        else:
            value = super().__getitem__(key)
        return self._default(key) if value is None else value

    def _default(self, key: str) -> Any:
        if key == "broker_url":
            return self._default_broker()
        if key == "result_backend":
            broker = self.broker_url
            return broker if _keeps_results(broker) else None
        if key == "broker_connection_retry_on_startup":
            # Celery's own default is to warn that this will have to be said one day.
            return self["broker_connection_retry"]
        return None

    def _default_broker(self) -> str | None:
        if self._folder is None or self["broker_host"] or self["broker_transport"]:
            return None
        return str(absolute_url("sqlite:///", self._folder))

    # Environment variables come in here, past every mapping: Celery lets them win.

    @property
    def broker_url(self) -> Any:
        return self._absolute(super().broker_url)

    @property
    def broker_read_url(self) -> Any:
        return self._absolute(super().broker_read_url)

    @property
    def broker_write_url(self) -> Any:
        return self._absolute(super().broker_write_url)

    @property
    def result_backend(self) -> Any:
        return self._absolute(super().result_backend)

    def _absolute(self, url: Any) -> Any:
        return url if self._folder is None else absolute_url(url, self._folder)


def _keeps_results(broker: Any) -> bool:
    """Say whether a broker's URL serves as that of the result backend, too.

    That of Redis over TLS does not: the backend wants the certificates told once more.
    """
    is_redis = isinstance(broker, str) and broker.startswith("redis://") and ";" not in broker
    return is_engine_url(broker) or is_redis


def absolute_url(url: Any, folder: str) -> Any:
    """Return the URL of an engine's file with its path made absolute; any other as it is.

    ``sqlite:///`` alone names the default file.
    """
    if not isinstance(url, str) or not is_engine_url(url):
        return url
    scheme, _, rest = url.partition("://")
    place, mark, options = rest.partition("?")
    host, _, file = place.partition("/")
    if host or ":memory:" in file or os.path.isabs(file):
        return url
    path = quote(os.path.join(folder, ""), safe="/:\\") + (file or DEFAULT_FILE)
    return f"{scheme}:///{path}{mark}{options}"


def from_environment() -> Iterator[str]:
    """Say what environment variables set: Celery lets these win over every configuration."""
    for name in ("broker_url", "broker_read_url", "broker_write_url", "result_backend"):
        variable = f"CELERY_{name.upper()}"
        if os.environ.get(variable):
            url = maybe_sanitize_url(os.environ[variable])
            yield f"{name}: {url} (from {variable} in the environment, which wins)"


class _Driver(NamedTuple):
    module: str
    #: What to install, as pip takes it.
    requirement: str


_SQLALCHEMY = _Driver("sqlalchemy", "celery[sqlalchemy]")
_REDIS = _Driver("redis", "celery[redis]")
_DRIVERS = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "sentinel": _REDIS,
    "sqla": _SQLALCHEMY,
    "sqlalchemy": _SQLALCHEMY,
    "db": _SQLALCHEMY,
    "database": _SQLALCHEMY,
    "sqs": _Driver("boto3", "celery[sqs]"),
    "mongodb": _Driver("pymongo", "celery[mongodb]"),
    "zookeeper": _Driver("kazoo", "celery[zookeeper]"),
    "confluentkafka": _Driver("confluent_kafka", "kombu[confluentkafka]"),
    "kafka": _Driver("confluent_kafka", "kombu[confluentkafka]"),
    "elasticsearch": _Driver("elasticsearch", "celery[elasticsearch]"),
    "cassandra": _Driver("cassandra", "celery[cassandra]"),
    "couchbase": _Driver("couchbase", "celery[couchbase]"),
    "dynamodb": _Driver("boto3", "celery[dynamodb]"),
    "s3": _Driver("boto3", "celery[s3]"),
    "arangodb": _Driver("pyArango", "celery[arangodb]"),
}


def check_urls(settings: Mapping[str, Any], folder: str) -> None:
    """Refuse URLs of brokers and result backends that could not be used, with the way out.

    :raises ImproperlyConfigured: for an unknown scheme or a driver that is not installed.
    :raises EngineConfigurationError: for a URL of ours that can not be understood.
    """
    for name in ("broker_url", "broker_read_url", "broker_write_url"):
        urls = _given_url(settings, name)
        for url in urls.split(";") if isinstance(urls, str) else urls or ():
            _check_url(name, absolute_url(url, folder), TRANSPORT_ALIASES)
    plugins: Iterable[Any] = load_extension_class_names("celery.result_backends")
    backends = {*BACKEND_ALIASES, *(plugin for plugin, _ in plugins)}
    backend = _given_url(settings, "result_backend")
    _check_url("result_backend", absolute_url(backend, folder), backends)


def make_folder(settings: Mapping[str, Any], folder: str) -> None:
    """Make the instance folder, closed to others, if a queue file is to stand in it."""
    urls = {_given_url(settings, name) for name in ("broker_url", "result_backend")}
    place = absolute_url("sqlite:///", folder).removesuffix(DEFAULT_FILE)
    inside = [absolute_url(url, folder).startswith(place) for url in urls if is_engine_url(url)]
    by_parts = settings.get("broker_host") or settings.get("broker_transport")
    if any(inside) or not (_given_url(settings, "broker_url") or by_parts):
        # When it can not be made, the engine says so to whom it concerns: a command that
        # enqueues nothing (`flask routes` on a read-only disk) goes on working.
        with suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)


def _given_url(settings: Mapping[str, Any], name: str) -> Any:
    return os.environ.get(f"CELERY_{name.upper()}") or settings.get(name)


def _refuse_path(name: str, url: Any) -> None:
    if isinstance(url, str) and (url.startswith(("/", ".")) or ":memory:" in url):
        raise ImproperlyConfigured(
            f"{name} is {url!r}, which is no URL. For a queue file write sqlite:///name.sqlite3, "
            "which is in the instance folder, or sqlite:////absolute/path.sqlite3."
        )


def _check_url(name: str, url: Any, known: Iterable[str]) -> None:
    if is_engine_url(url):
        open_engine(url)
        return
    if not isinstance(url, str) or "://" not in url:
        _refuse_path(name, url)
        return
    scheme = _scheme(url)
    if scheme not in known and "." not in scheme:
        nearest = [*difflib.get_close_matches(scheme, known, n=1, cutoff=0.7), "sqlite"]
        raise ImproperlyConfigured(
            f"{name} is a {scheme}:// URL, which neither Celery nor Celeriac knows: did you mean "
            f"{nearest[0]}://? With sqlite:/// no server is needed."
        )
    driver = _DRIVERS.get(scheme)
    if driver is not None and find_spec(driver.module) is None:
        raise ImproperlyConfigured(
            f"{name} is a {scheme}:// URL, and the package {driver.module} is not installed: "
            f"pip install '{driver.requirement}'."
        )


def _scheme(url: Any) -> str:
    return url.partition("://")[0].partition("+")[0] if isinstance(url, str) else ""
