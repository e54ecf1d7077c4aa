"""OpenTelemetry's Celery instrumentation records on SQLite what it records on Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from instrument_runs import record_both
from instrument_runs import Records

#: Told anew in each run.
_VARYING = {
    "celery.eta",
    "celery.hostname",
    "celery.reply_to",
    "messaging.conversation_id",
    "messaging.message.id",
}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_same_spans_and_metrics_as_on_redis(
    pool: str, tmp_path: Path, module_redis_url: str
) -> None:
    records = record_both(tmp_path, "telemetry", pool, module_redis_url)
    ours, theirs = records["sqlite"], records["redis"]

    assert spans(ours) == spans(theirs)
    assert runs(ours) == runs(theirs)

    # And both say what OpenTelemetry promises.
    paths = [span[0] for span in spans(ours)]
    assert (
        "apply_async/instrumented.outer > run/instrumented.outer > "
        "apply_async/instrumented.add > run/instrumented.add" in paths
    )
    (failed,) = [span for span in spans(ours) if span[0].endswith("run/instrumented.fail")]
    assert failed[2] == {"status_code": "ERROR", "description": "no"}
    assert failed[4] == [("exception", "ValueError", "no")]
    assert runs(ours)["instrumented.add", "celery@"] == 4


def spans(records: Records) -> list[tuple[Any, ...]]:
    """Return path, kind, status, attributes, events and links of each span."""
    found = {each["context"]["span_id"]: each for kind, each in records if kind == "span"}

    def path(span: dict[str, Any]) -> str:
        parent = found.get(span["parent_id"])
        return (f"{path(parent)} > " if parent else "") + str(span["name"])

    return sorted(
        (
            (
                path(span),
                span["kind"],
                span["status"],
                {
                    name: name if name in _VARYING else value
                    for name, value in span["attributes"].items()
                },
                [
                    (
                        event["name"],
                        event["attributes"]["exception.type"],
                        event["attributes"]["exception.message"],
                    )
                    for event in span["events"]
                ],
                span["links"],
            )
            for span in found.values()
        ),
        key=str,
    )


def runs(records: Records) -> dict[tuple[str, str], int]:
    """Return how many runs of each task the worker's histogram counted."""
    return {
        (point["attributes"]["task"], point["attributes"]["worker"].partition("@")[0] + "@"): point[
            "count"
        ]
        for kind, data in records
        if kind == "metrics"
        for resource in data["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
        if metric["name"] == "flower.task.runtime.seconds"
        for point in metric["data"]["data_points"]
    }
