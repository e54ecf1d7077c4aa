"""Every trap of ``docs/traps.rst``: kept or mended as it says there, and the tests that show it.

:data:`TRAPS` names them all. Most are tested where their subject is; what belongs nowhere else is
tested here.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest
from celery import Celery
from celery import chord
from celery import shared_task
from celery.result import AsyncResult
from flask import current_app
from flask import Flask
from programs import run

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.engines import Engine
from celeriac.engines import open_engine
from celeriac.engines.base import Result
from celeriac.engines.base import Worker
from celeriac.exceptions import WaitingWarning

HERE = Path(__file__).parent

KEPT, MENDED, BOTH = "Kept", "Mended", "Both"


class Trap(NamedTuple):
    """A surprise, what becomes of it, and which tests say so."""

    name: str
    verdict: str
    #: Each in the form ``file: test``.
    tests: tuple[str, ...]


TRAPS = {
    1: Trap(
        "-A takes the Flask app for a Celery app",
        MENDED,
        (
            "test_cli.py: test_module_whose_app_is_the_flask_app_is_understood_by_celery",
            "test_cli.py: test_flask_app_answers_celerys_program_only",
        ),
    ),
    2: Trap(
        "__main__ in the name of a task",
        BOTH,
        (
            "test_extension.py: test_script_enqueues_the_name_that_a_worker_knows",
            "test_generations.py: test_our_factory_takes_the_place_of_the_documented_one",
            "test_traps.py: test_task_of_a_script_with_celerys_own_class_waits_and_is_explained",
        ),
    ),
    3: Trap(
        "spellings that are not read",
        MENDED,
        (
            "test_config.py: test_every_setting_means_the_same_in_every_spelling",
            "test_config.py: test_explicit_argument_wins_over_config",
        ),
    ),
    4: Trap(
        "Cannot mix",
        MENDED,
        (
            "test_config.py: test_spellings_are_mixed_freely",
            "test_config.py: test_settings_may_be_changed_afterwards_in_any_spelling",
        ),
    ),
    5: Trap(
        "environment variables win",
        KEPT,
        (
            "test_config.py: test_environment_variables_of_celery_win",
            "test_traps.py: test_report_says_what_the_environment_set",
        ),
    ),
    6: Trap(
        "the whole Flask config in celery.conf",
        MENDED,
        (
            "test_config.py: test_no_other_key_of_flask_reaches_celery",
            "test_interchange.py: test_secret_of_the_flask_app_goes_nowhere",
        ),
    ),
    7: Trap(
        "wait() is get(), without end",
        KEPT,
        (
            "test_traps.py: test_wait_is_get",
            "test_explain.py: test_waiting_in_vain_warns_within_three_seconds_and_goes_on",
        ),
    ),
    8: Trap(
        "results that are not kept",
        BOTH,
        (
            "test_explain.py: "
            "test_waiting_for_a_result_that_is_not_kept_returns_none_and_warns_once",
            "test_traps.py: test_ignored_result_is_not_waited_for_by_its_id",
        ),
    ),
    9: Trap(
        "PENDING for unknown ids",
        KEPT,
        (
            "test_backend.py: test_exists_says_whether_a_task_is_known",
            "test_explain.py: test_running",
            "contract/test_tasks.py: test_started_is_tracked_where_asked_for",
        ),
    ),
    10: Trap(
        "get() inside a task",
        KEPT,
        ("contract/test_calling.py: test_waiting_for_another_task_is_refused",),
    ),
    11: Trap(
        "early acknowledgement, and prefetch",
        BOTH,
        (
            "lifecycle/test_deaths.py: test_task_of_a_killed_child_fails_with_its_arguments",
            "lifecycle/test_deaths.py: test_unstarted_tasks_of_a_killed_child_return",
            "lifecycle/test_deaths.py: test_no_slot_idles_behind_a_slow_task",
            "contract/test_differences.py: test_worker_takes_no_more_than_it_runs",
        ),
    ),
    12: Trap(
        "acks_late, and the child dies",
        MENDED,
        (
            "lifecycle/test_deaths.py: test_late_task_of_a_killed_child_runs_again",
            "lifecycle/test_deaths.py: test_message_that_kills_three_workers_is_set_aside",
            "lifecycle/test_deaths.py: test_late_task_is_not_run_again_where_that_is_refused",
        ),
    ),
    13: Trap(
        "a task that the worker does not know",
        MENDED,
        ("contract/test_differences.py: test_unknown_task_waits_for_a_worker_that_knows_it",),
    ),
    14: Trap(
        "Redis hands out again after an hour",
        MENDED,
        (
            "test_differences.py: test_late_task_that_takes_longer_than_the_visibility_timeout",
            "test_brokers.py: test_eta_beyond_the_visibility_timeout_is_warned_of_once",
            "test_brokers.py: test_worker_on_redis_says_what_its_tasks_do_not_get",
        ),
    ),
    15: Trap(
        "ETA tasks in memory",
        MENDED,
        (
            "lifecycle/test_eta.py: test_a_hundred_thousand_future_tasks_take_no_memory",
            "contract/test_differences.py: test_task_that_is_not_due_waits_in_its_queue",
        ),
    ),
    16: Trap(
        "revocations are forgotten",
        MENDED,
        (
            "test_control.py: test_task_revoked_while_no_worker_runs_is_never_run",
            "lifecycle/test_revoke.py: test_worker_that_starts_later_knows_what_was_revoked",
        ),
    ),
    17: Trap(
        "rate limits are each worker's own",
        MENDED,
        (
            "test_rate_limits.py: test_a_limit_holds_over_all_workers",
            "test_rate_limits.py: test_on_redis_each_worker_has_its_own",
        ),
    ),
    18: Trap(
        "priorities go up or down",
        MENDED,
        ("test_priorities.py: test_one_program_has_one_order",),
    ),
    19: Trap(
        "retry() without back-off",
        BOTH,
        (
            "test_retry.py: test_retry_backs_off",
            "test_retry.py: test_retry_without_back_off_waits_as_long_as_celery_says",
        ),
    ),
    20: Trap(
        "eager tasks",
        KEPT,
        ("test_traps.py: test_eager_task_is_as_in_celery",),
    ),
    21: Trap(
        "what JSON makes of arguments",
        KEPT,
        (
            "contract/test_tasks.py: test_arguments_arrive_as_json_has_them",
            "test_extension.py: test_argument_that_json_can_not_hold_is_named",
        ),
    ),
    22: Trap(
        "exceptions by name",
        KEPT,
        (
            "contract/test_tasks.py: test_result_and_error_come_back",
            "test_traps.py: test_error_of_an_unknown_class_is_made_up",
        ),
    ),
    23: Trap(
        "update_state to FAILURE",
        MENDED,
        ("test_backend.py: test_failure_stored_with_data_does_not_poison_the_result",),
    ),
    24: Trap(
        "results in a database",
        MENDED,
        (
            "test_backend.py: test_result_is_returned_as_soon_as_it_is_stored",
            "engines/conformance.py: test_expired_results_and_groups_go_and_others_stay",
        ),
    ),
    25: Trap(
        "a database as the broker",
        MENDED,
        (
            "test_transport.py: test_message_is_delivered_as_soon_as_it_is_published",
            "test_remote_control.py: test_ping_clock_report_and_conf",
            "test_remote_control.py: test_events_tell_the_life_of_a_task",
            "test_bad_input.py: test_delay_onto_a_full_disk_raises_and_stores_nothing",
        ),
    ),
    26: Trap(
        "the broker is down",
        MENDED,
        (
            "test_unreachable.py: test_broker_out_of_reach",
            "test_unreachable.py: test_broker_and_results_out_of_reach",
            "test_unreachable.py: test_redis_that_falls_silent_and_comes_back",
            "test_bad_input.py: test_delay_into_a_locked_queue_raises_and_stores_nothing",
        ),
    ),
    27: Trap(
        "pools without time limits",
        MENDED,
        (
            "contract/test_time_limits.py: test_soft_limit_may_be_caught",
            "contract/test_time_limits.py: test_hard_limit_fails_the_task_at_once",
        ),
    ),
    28: Trap(
        "two beats",
        MENDED,
        ("test_beat.py: test_each_due_time_is_sent_once_by_two_beats_whichever_dies",),
    ),
    29: Trap(
        "-A after the command",
        MENDED,
        ("test_cli.py: test_both_orders_of_celery_4_and_5_are_understood",),
    ),
    30: Trap(
        "the root logger",
        MENDED,
        (
            "test_logging.py: test_configured_logging_is_left_alone",
            "test_logging.py: test_celerys_logging_is_had_by_asking_for_it",
        ),
    ),
    31: Trap(
        "chord_unlock",
        MENDED,
        (
            "test_traps.py: test_chord_sends_no_task_of_its_own",
            "test_backend.py: test_one_of_several_dispatchers_wins",
            "lifecycle/test_deaths.py: test_chord_and_errback_hear_of_a_lost_worker",
        ),
    ),
    32: Trap(
        "a plain call's context",
        BOTH,
        (
            "test_extension.py: test_plain_call_keeps_the_context_of_its_caller",
            "test_extension.py: test_plain_call_without_a_context_gets_one",
        ),
    ),
    33: Trap(
        "shared tasks before there is an app",
        MENDED,
        (
            "test_extension.py: test_call_without_an_app_says_what_is_missing",
            "test_extension.py: "
            "test_shared_task_asked_for_too_early_is_not_bound_to_celerys_made_up_app",
        ),
    ),
    34: Trap(
        "the documented snippets",
        KEPT,
        (
            "test_generations.py: test_documented_factory_works_on_a_file",
            "test_generations.py: test_documented_factory_works_on_redis",
            "test_generations.py: test_our_factory_takes_the_place_of_the_documented_one",
            "test_traps.py: test_surface_of_the_snippets",
            "test_extension.py: test_task_class_of_the_2016_snippet_can_be_assigned",
            "test_extension.py: test_task_class_of_the_2013_snippet_can_be_assigned",
        ),
    ),
}

EAGER = {"task_always_eager": True}


@pytest.mark.parametrize("number", TRAPS, ids=lambda number: f"trap_{number:02}")
def test_trap_has_its_tests(number: int) -> None:
    for each in TRAPS[number].tests:
        file, _, test = each.partition(": ")
        assert test in _functions(HERE / file), each


def test_every_trap_is_told_with_what_becomes_of_it() -> None:
    page = (HERE.parent / "docs" / "traps.rst").read_text()
    rows = re.findall(r"^    -   - (\d+)\n        - .+?\n        - \*\*(\w+)", page, re.M | re.S)

    assert sorted(TRAPS) == list(range(1, 35))
    assert {int(number): verdict for number, verdict in rows} == {
        number: trap.verdict for number, trap in TRAPS.items()
    }


def _functions(path: Path) -> set[str]:
    return set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.M))


@pytest.fixture
def app(queue_url: str) -> Celeriac:
    return make_app(queue_url)


@pytest.fixture
def engine(queue_url: str) -> Engine:
    return open_engine(queue_url)


def make_app(url: str, **settings: Any) -> Celeriac:
    flask_app = Flask("program")
    flask_app.config["CELERY"] = {"broker_url": url, **settings}
    return make_celery(flask_app)


# 2

SCRIPT = """\
from celery import Celery

celery = Celery("tasks", broker={url!r}, backend={url!r}) if {named} else Celery(broker={url!r})

@celery.task
def add(a, b):
    return a + b

if __name__ == "__main__":
    print(add.delay(1, 2).id)
"""


def test_task_of_a_script_with_celerys_own_class_waits_and_is_explained(
    queue_url: str, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(url=queue_url, named=False))
    task_id = run([sys.executable, "script.py"], cwd=tmp_path).stdout.strip()
    engine.register(Worker("w", "w@host", os.getpid(), ["celery"], {"script.add"}))

    assert engine.claim(["celery"], 1, worker="w", tasks={"script.add"}) == []

    told = str(make_app(queue_url).AsyncResult(task_id).explain())
    assert told == (
        f"0 of 1 live workers on queue `celery` know task `__main__.add`, so {task_id} waits. It "
        "was sent by a script, where a task is named after `__main__`: send it from a program "
        "that imports the script, or name it with: @celery.task(name='add')"
    )
    engine.deregister("w")


# 5


def test_report_says_what_the_environment_set(
    app: Celeriac, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "in the environment" not in app.bugreport()

    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:secret@example/0")

    report = app.bugreport()
    assert "secret" not in report
    assert report.splitlines()[-1] == (
        "broker_url: redis://:**@example/0 (from CELERY_BROKER_URL in the environment, which wins)"
    )


# 7, 8


def test_wait_is_get(app: Celeriac) -> None:
    result = app.send_task("add")
    app.backend.store_result(result.id, 3, "SUCCESS")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (result.wait(), result.get(), result.wait(timeout=1)) == (3, 3, 3)


def test_ignored_result_is_not_waited_for_by_its_id(app: Celeriac) -> None:
    task_id = app.send_task("add", ignore_result=True).id
    kept = app.send_task("add").id
    app.backend.store_result(kept, 3, "SUCCESS")

    with pytest.warns(WaitingWarning, match=f"The result of task {task_id} is not kept") as told:
        assert app.AsyncResult(task_id).get() is None
        # As Flask's documentation has it, with Celery's own class.
        assert AsyncResult(task_id, app=app).get() is None

    assert len(told.list) == 1
    assert app.AsyncResult(kept).get() == 3


# 20


def test_eager_task_is_as_in_celery(queue_url: str, engine: Engine) -> None:
    app = make_app(queue_url, **EAGER)

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError("no")

    began = time.monotonic()
    assert echo.apply_async(((1, 2),), countdown=3600).get() == [1, 2]
    assert time.monotonic() - began < 60
    assert echo.apply(((1, 2),)).get() == (1, 2)
    failed = fail.delay()
    assert failed.state == "FAILURE"
    with pytest.raises(ValueError, match="no"):
        failed.get()
    with pytest.warns(RuntimeWarning, match="Results are not stored"):
        assert app.AsyncResult(failed.id).state == "PENDING"
    assert engine.list_tasks() == []


# 22


def test_error_of_an_unknown_class_is_made_up(app: Celeriac, engine: Engine) -> None:
    result = app.send_task("fail")
    error = {"exc_type": "Unheard", "exc_message": ["of"], "exc_module": "nowhere"}
    meta = {"status": "FAILURE", "result": error, "task_id": result.id, "children": []}
    engine.store_results([Result(result.id, "FAILURE", json.dumps(meta).encode())])

    with pytest.raises(Exception, match="of") as caught:
        result.get()

    assert type(caught.value).__name__ == "Unheard"
    assert type(caught.value).__mro__[1] is Exception


# 31


def test_chord_sends_no_task_of_its_own(app: Celeriac, engine: Engine) -> None:
    @app.task(name="part")
    def part() -> None: ...

    @app.task(name="whole")
    def whole(parts: Any) -> None: ...

    chord([part.s(), part.s()])(whole.s())

    assert [task.task for task in engine.list_tasks()] == ["part", "part"]


# 34


@pytest.fixture(params=["celery", "celeriac"])
def make(request: pytest.FixtureRequest, queue_url: str) -> Iterator[Callable[..., Any]]:
    """Make apps of Celery's class, and of ours, in the ways of the documented snippets."""
    if request.param == "celery":
        yield Celery
    else:
        yield lambda name, **options: make_celery(Flask(name), **options)


def by_arguments(make: Any, url: str) -> Any:
    return make("program", broker=url, backend=url)


def by_update(make: Any, url: str) -> Any:
    app = make("program")
    app.conf.update({"broker_url": url, "result_backend": url})
    return app


def by_update_with_a_flask_config(make: Any, url: str) -> Any:
    flask_app = Flask("program")
    flask_app.config["CELERY_RESULT_BACKEND"] = url
    app = make(flask_app.import_name, broker=url)
    app.conf.update(flask_app.config)
    return app


def by_object(make: Any, url: str) -> Any:
    app = make("program", task_cls=_task_class())
    app.config_from_object({"broker_url": url, "result_backend": url, "task_ignore_result": True})
    app.set_default()
    return app


def _task_class() -> Any:
    from celery import Task

    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with Flask("within").app_context():
                return self.run(*args, **kwargs)

    return FlaskTask


@pytest.mark.parametrize(
    "configure", [by_arguments, by_update, by_update_with_a_flask_config, by_object]
)
@pytest.mark.parametrize("base", ["run", "call"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared_task", "task"])
def test_surface_of_the_snippets(
    make: Any, queue_url: str, engine: Engine, configure: Any, base: str, shared: bool
) -> None:
    app = configure(make, queue_url)
    within = Flask("within")
    if configure is not by_object:
        TaskBase = app.Task

        class ContextTask(TaskBase):  # type: ignore[misc, valid-type]
            abstract = True

            def __call__(self, *args: object, **kwargs: object) -> object:
                with within.app_context():
                    if base == "run":
                        return self.run(*args, **kwargs)
                    return TaskBase.__call__(self, *args, **kwargs)

        app.Task = ContextTask
        app.set_default()
    declare = shared_task if shared else app.task

    @declare(name=f"where-{uuid.uuid4()}", ignore_result=False)
    def where() -> str:
        return current_app.name

    assert where() == "within"
    assert where.apply().get() == "within"
    result = where.delay()
    app.backend.store_result(result.id, 65, "SUCCESS")
    assert result.wait(timeout=5) == 65
    assert app.AsyncResult(result.id).result == 65
    assert [task.task for task in engine.list_tasks()] == [where.name]
