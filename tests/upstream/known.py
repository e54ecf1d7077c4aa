"""What is known of the suite's tests: which worker each needs, and what can not apply, and why."""

from __future__ import annotations

import re
from pathlib import Path

# The columns, by their brokers.
REDIS = "redis"
SQLITE = "sqlite"

# The worker that a test is run with.
#: ``celery worker``, a process of its own.
PROCESS = "process"
#: A thread of the process that runs the tests, as the suite has it.
THREAD = "thread"
#: The same with ``-P threads``, so that tasks run in that process, too.
THREADS = "threads"

#: The files of which every test that passes on Redis has to pass on SQLite.
PROMISED = tuple(
    f"test_{name}.py"
    for name in (
        "beat",
        "canvas",
        "group_chains",
        "inspect",
        "loader",
        "security",
        "serialization",
        "tasks",
        "worker",
    )
)

_STAMPING = "test_canvas.py::test_stamping_mechanism::"
_RECEIVERS = "test_tasks.py::test_signal_bound_method_receivers::"
_REPLACEMENT = "test_tasks.py::test_task_replacement::"

#: Tests that look into the process of the worker, and so share it. Those with THREADS look at
#: what a worker of ours does where the task runs: it sends ``task_received`` and logs there.
IN_THIS_PROCESS = {
    # It compares the worker's process id with its own.
    "test_inspect.py::test_Inspect::test_stats": THREAD,
    # It reads a variable of celery.worker.state.
    "test_inspect.py::test_Inspect::test_hello_stamps_received_revoked_ids_locally": THREAD,
    # They read the worker's log.
    "test_canvas.py::test_chord::test_chord_error_propagation_with_different_body_types": THREADS,
    "test_canvas.py::test_chord::test_chord_error_in_nested_chain_does_not_crash": THREADS,
    "test_tasks.py::test_trace_log_arguments::test_task_success": THREADS,
    "test_tasks.py::test_trace_log_arguments::test_task_failed": THREADS,
    # They connect a receiver to the signal task_received.
    f"{_STAMPING}test_stamping_workflow": THREADS,
    f"{_STAMPING}test_task_received_has_access_to_stamps": THREADS,
    f"{_STAMPING}test_all_tasks_of_canvas_are_stamped": THREADS,
    f"{_STAMPING}test_replace_merge_stamps": THREADS,
    f"{_STAMPING}test_linking_stamped_sig": THREADS,
    f"{_STAMPING}test_err_linking_stamped_sig": THREADS,
    f"{_STAMPING}test_stamps_remain_on_task_retry": THREADS,
    f"{_REPLACEMENT}test_replaced_task_nesting_level_0": THREADS,
    f"{_REPLACEMENT}test_replaced_task_nesting_level_1": THREADS,
    f"{_REPLACEMENT}test_replaced_task_nesting_chain": THREADS,
    f"{_RECEIVERS}test_each_instance_receives": THREADS,
    f"{_RECEIVERS}test_disconnect_leaves_other_instance_connected": THREADS,
    f"{_RECEIVERS}test_other_instance_receives_after_garbage_collection": THREADS,
}

_SUBSCRIPTIONS = "It counts the subscriptions in Redis by which a caller waits for results there."

#: What can not apply to SQLite, with the reason. Each is a test of Redis itself.
NOT_APPLICABLE = {
    "test_canvas.py::test_chord::test_redis_subscribed_channels_leak": _SUBSCRIPTIONS,
    "test_canvas.py::test_chord::test_chord_on_error": (
        "It reads from Redis how its result backend keeps the parts of a chord."
    ),
    "test_tasks.py::test_task_redis_result_backend::test_ignoring_result_no_subscriptions": (
        _SUBSCRIPTIONS
    ),
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_forget_cancels_subscription": (
        _SUBSCRIPTIONS
    ),
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_get_cancels_subscription": (
        _SUBSCRIPTIONS
    ),
}


def name(nodeid: str) -> str:
    """Return how a test is called here: file, class, function, parameters."""
    return nodeid.removeprefix("t/integration/")


def file_of(test: str) -> str:
    """Return the file that a test is in."""
    return test.partition("::")[0]


def function_of(test: str) -> str:
    """Return a test's name without its parameters."""
    return re.sub(r"\[.*", "", test)


def worker_of(column: str, test: str) -> str:
    """Return the worker that a test is run with. On Redis it is always the suite's own."""
    if column == REDIS:
        return THREAD
    return IN_THIS_PROCESS.get(function_of(test), PROCESS)


def let_run_on_sqlite(suite: Path) -> None:
    """Take away the conditions by which tests skip themselves on other backends than Redis.

    Either they need Redis for what their tasks note there, which they have with any backend, or
    they ask for the class of the backend instead of for what it can do. The same copy of the
    suite is run in both columns.
    """
    for file, changes in _CHANGES.items():
        path = suite / "t" / "integration" / file
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{file} has changed, and this is not there any more: {old}"
            text = text.replace(old, new)
        path.write_text(text)


_BY_URL = [
    ("result_backend.startswith('redis')", "result_backend.startswith(('redis', 'sqlite'))"),
    ('result_backend.startswith("redis")', "result_backend.startswith(('redis', 'sqlite'))"),
]
_CHANGES = {
    "test_canvas.py": [
        *_BY_URL,
        # What the test sends beside its message can not be stored by either; AMQP drops it.
        ("broker_url.startswith('redis')", "broker_url.startswith(('redis', 'sqlite'))"),
        ("startswith(('redis', 'rpc'))", "startswith(('redis', 'rpc', 'sqlite'))"),
        ("isinstance(manager.app.backend, BaseKeyValueStoreBackend)", "manager.app.backend"),
    ],
    "test_group_chains.py": _BY_URL[:1],
    "test_tasks.py": [
        *_BY_URL,
        # They forget what the receiver of a signal told them, if the worker is faster than them.
        *(
            (
                f"        res = {task}.delay()\n        assertion_result = False\n",
                f"        assertion_result = False\n        res = {task}.delay()\n",
            )
            for task in ("non_replaced_task", "replaced_task")
        ),
    ],
}
