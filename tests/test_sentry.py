"""Sentry's Celery integration records on SQLite what it records on Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instrument_runs import record_both
from instrument_runs import Records


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_same_spans_errors_and_check_ins_as_on_redis(
    pool: str, tmp_path: Path, module_redis_url: str
) -> None:
    records = record_both(tmp_path, "sentry", pool, module_redis_url)
    ours, theirs = (Seen(records[name]) for name in ("sqlite", "redis"))

    assert lines(ours.transactions()) == lines(theirs.transactions())
    assert lines(ours.errors()) == lines(theirs.errors())
    assert lines(ours.check_ins()) == lines(theirs.check_ins())

    # And both say what Sentry promises.
    assert ours.path("instrumented.add", "queue.process") == [
        "http.server order",
        "queue.submit.celery instrumented.add",
        "queue.submit.celery instrumented.add",
        "queue.task.celery instrumented.add",
        "queue.process instrumented.add",
    ]
    (error,) = ours.errors()
    assert error["exception"] == [["ValueError", "no", {"type": "celery", "handled": False}]]
    assert error["breadcrumbs"] == ["about to fail"]
    statuses = {each["name"]: each["status"] for each in ours.transactions()}
    assert statuses["instrumented.fail"] == "internal_error"
    assert [each["slug"] for each in ours.check_ins()] == (["ticking"] if pool == "prefork" else [])


class Seen:
    """What one run sent to Sentry, without what is different in each: ids, times, threads."""

    def __init__(self, records: Records) -> None:
        self._events = [fields for kind, fields in records if kind == "event"]
        self._transactions = [fields for kind, fields in records if kind == "transaction"]
        self._check_ins = [fields for kind, fields in records if kind == "check_in"]
        self._spans: dict[str, dict[str, Any]] = {}
        for each in self._transactions:
            own = {**each["contexts"]["trace"], "description": each["transaction"]}
            for span in (own, *each["spans"]):
                self._spans[span["span_id"]] = span

    def transactions(self) -> list[dict[str, Any]]:
        return [
            {
                "name": each["transaction"],
                "source": each["transaction_info"],
                "status": each["contexts"]["trace"]["status"],
                "path": self._path(each["contexts"]["trace"]["span_id"]),
                "extra": _extra(each),
                "tags": sorted(each.get("tags", {})),
                "breadcrumbs": _breadcrumbs(each),
                "spans": sorted(lines(self._span(span) for span in _of_celery(each["spans"]))),
            }
            for each in self._transactions
        ]

    def errors(self) -> list[dict[str, Any]]:
        return [
            {
                "transaction": each["transaction"],
                "path": self._path(each["contexts"]["trace"]["span_id"]),
                "exception": [
                    [value["type"], value["value"], value["mechanism"]]
                    for value in each["exception"]["values"]
                ],
                "functions": [
                    frame["function"]
                    for value in each["exception"]["values"]
                    for frame in value["stacktrace"]["frames"]
                ],
                "extra": _extra(each),
                "tags": sorted(each["tags"]),
                "breadcrumbs": _breadcrumbs(each),
                "level": each["level"],
            }
            for each in self._events
        ]

    def check_ins(self) -> list[dict[str, Any]]:
        return [
            {
                "slug": each["monitor_slug"],
                "status": each["status"],
                "config": each.get("monitor_config"),
            }
            for each in self._check_ins
        ]

    def path(self, name: str, op: str) -> list[str]:
        """Return the spans above the first one with this name and operation, and itself."""
        found = (
            span
            for span in self._spans.values()
            if span["op"] == op and span["description"] == name
        )
        return self._path(next(found)["span_id"])

    def _path(self, span_id: str | None) -> list[str]:
        span = self._spans.get(span_id or "")
        if span is None:
            return []
        return [*self._path(span.get("parent_span_id")), f"{span['op']} {span['description']}"]

    def _span(self, span: dict[str, Any]) -> dict[str, Any]:
        named = {name: value for name, value in span["data"].items() if "." in name}
        for name in ("id", "receive.latency"):
            if f"messaging.message.{name}" in named:
                named[f"messaging.message.{name}"] = "differs"
        for name in ("thread.id", "thread.name"):
            named.pop(name, None)
        if "messaging.system" in named:
            named["messaging.system"] = "differs"
        return {
            "path": self._path(span["span_id"]),
            "status": span.get("status"),
            "origin": span["origin"],
            "data": named,
        }


def _of_celery(spans: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out what talks to Redis itself."""
    return (span for span in spans if not span["op"].startswith("db"))


def _extra(event: dict[str, Any]) -> Any:
    return event.get("extra", {}).get("celery-job")


def _breadcrumbs(event: dict[str, Any]) -> list[str]:
    crumbs = event.get("breadcrumbs", {}).get("values", [])
    return [crumb["message"] for crumb in crumbs if crumb.get("category") == "shop"]


def lines(values: Iterable[Any]) -> list[str]:
    """Return the values in an order that says nothing: processes send when they end."""
    return sorted(json.dumps(value, sort_keys=True) for value in values)
