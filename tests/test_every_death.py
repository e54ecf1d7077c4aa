"""Every death that :mod:`celeriac.worker.redelivery` tells of, and the tests that it is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from celeriac.worker import redelivery

HERE = Path(__file__).parent
DEATHS = "lifecycle/test_deaths.py: test_"
FAULTS = "lifecycle/test_queue_file_faults.py: test_"
GRACE = "lifecycle/test_grace_period.py: test_"
SHUTDOWN = "lifecycle/test_shutdown.py: test_"
CLOCK = "lifecycle/test_clock.py: test_"

#: The first word of each row of its two tables, and tests of what the row says.
ROWS = {
    "the task raises": (
        "contract/test_tasks.py: test_retries_are_limited",
        "contract/test_results.py: test_failure_in_a_group_is_raised",
    ),
    "it ends its process": (
        DEATHS + "task_that_exits_fails_and_the_next_one_runs",
        DEATHS + "task_that_exits_in_a_thread_fails_and_the_thread_is_replaced",
    ),
    "the child is killed": (
        DEATHS + "task_of_a_killed_child_fails_with_its_arguments",
        DEATHS + "late_task_of_a_killed_child_runs_again",
        DEATHS + "message_that_kills_three_workers_is_set_aside",
        DEATHS + "late_task_is_not_run_again_where_that_is_refused",
        DEATHS + "unstarted_tasks_of_a_killed_child_return",
        "test_memory.py: test_memory_of_a_killed_child_is_told",
    ),
    "killed for lack of memory": (
        "test_memory.py: test_child_killed_by_the_kernel_for_lack_of_memory_is_told",
    ),
    "soft time limit": (DEATHS + "soft_time_limit_is_raised_in_the_task",),
    "hard time limit": (
        DEATHS + "hard_time_limit_ends_the_task",
        DEATHS + "limits_of_call_and_worker_hold",
    ),
    "revoked with terminate": (
        "lifecycle/test_revoke.py: test_running_loop_is_ended",
        "lifecycle/test_revoke.py: test_late_task_that_is_terminated_does_not_run_again",
    ),
    "its child hangs between tasks": (
        "lifecycle/test_wedged.py: test_children_that_hang_between_two_tasks_are_replaced",
    ),
    "its parent hangs": (
        "lifecycle/test_wedged.py: test_task_that_runs_while_the_parent_hangs_may_finish",
        "lifecycle/test_wedged.py: "
        "test_worker_whose_loop_hangs_begins_anew_until_it_hangs_too_often",
    ),
    "warm shutdown (TERM)": (
        SHUTDOWN + "warm_shutdown_lets_the_task_finish_and_gives_back_the_rest",
    ),
    "worker_grace_period over": (
        GRACE + "what_runs_when_the_grace_period_is_over_is_handed_back_or_lost_aloud",
    ),
    "soft shutdown": (SHUTDOWN + "soft_shutdown_gives_time_and_starts_nothing_more",),
    "cold shutdown (QUIT)": (SHUTDOWN + "cold_shutdown_ends_tasks_and_late_ones_run_again",),
    "killed while it stops": (GRACE + "signal_to_all_processes_counts_as_nobodys_death",),
    "the parent is killed": (DEATHS + "children_die_with_their_parent",),
    "the whole worker is killed": (
        DEATHS + "other_worker_takes_over_from_one_that_died_whole",
        DEATHS + "next_worker_takes_over_from_one_that_died_whole",
    ),
    "power cut, full": ("test_power.py: test_nothing_confirmed_is_missing_after_a_cut",),
    "power cut, normal": (
        "test_power.py: test_last_moments_may_be_missing_with_normal_durability",
    ),
    "the disk is full": (
        FAULTS + "full_disk_holds_everything_up_and_loses_nothing",
        FAULTS + "worker_that_ends_while_the_disk_is_full_leaves_the_rest_to_the_next",
        "engines/test_place.py: test_a_full_disk_is_told_at_whatever_moment",
        "engines/test_place.py: test_a_full_disk_loses_nothing_and_workers_go_on",
    ),
    "the file is locked": (
        FAULTS + "foreign_lock_is_outlived",
        "test_bad_input.py: test_delay_into_a_locked_queue_raises_and_stores_nothing",
        "test_bad_input.py: test_delay_waits_for_a_lock_that_is_given_up",
    ),
    "the file can only be read": (
        FAULTS + "file_system_that_can_only_be_read_is_told_and_used_again",
        "engines/test_place.py: test_a_disk_that_can_only_be_read_is_told",
        "engines/test_place.py: test_a_file_of_another_user_is_told",
    ),
    "the file is damaged": (
        FAULTS + "worker_with_a_damaged_file_ends_and_says_so",
        FAULTS + "worker_with_a_damaged_file_lets_its_tasks_end",
        "test_bad_input.py: test_worker_ends_and_tells_what_is_wrong_with_the_queue_file",
    ),
    "the file is deleted": (
        FAULTS + "everyone_follows_to_the_file_that_takes_the_place_of_a_deleted_one",
        "engines/test_sqlite.py: test_a_file_that_somebody_removed_is_made_anew",
    ),
    "a copy of it is put back": (FAULTS + "everyone_follows_to_a_copy_that_was_put_back",),
    "its log is deleted": (FAULTS + "workers_go_on_when_the_log_is_removed",),
    "its folder is deleted": (
        FAULTS + "folder_beside_the_file_removed_under_workers_holds_nothing_up",
        "engines/test_sqlite.py: "
        "test_a_child_that_starts_after_the_file_was_removed_declares_nobody_dead",
    ),
    "the clock is set forward": (
        CLOCK + "workers_go_on_when_the_clock_jumps",
        CLOCK + "time_limits_rates_and_etas_when_the_clock_jumps",
    ),
    "the clock is set back": (
        CLOCK + "workers_go_on_when_the_clock_jumps",
        CLOCK + "time_limits_rates_and_etas_when_the_clock_jumps",
        CLOCK + "schedules_go_on_when_the_clock_jumps",
        "engines/test_sqlite.py: "
        "test_a_chord_that_was_completed_before_the_clock_was_set_back_is_ready",
    ),
}


def test_every_row_has_its_tests_and_every_test_its_row() -> None:
    assert list(ROWS) == rows(redelivery.__doc__ or "")


@pytest.mark.parametrize("row", ROWS)
def test_tests_of_a_row_are_there(row: str) -> None:
    for each in ROWS[row]:
        file, _, test = each.partition(": ")
        assert f"def {test}(" in (HERE / file).read_text(), each


def rows(text: str) -> list[str]:
    """Return the first column of the tables in ``text``, their heads left out."""
    tables = re.findall(r"^=+ .*\n.*\n=+ .*\n((?:.+\n)+?)=+ .*$", text, re.M)
    lines = [line for table in tables for line in table.splitlines()]
    firsts = [line.split("  ")[0].replace("``", "") for line in lines]
    return [first for first in firsts if first]
