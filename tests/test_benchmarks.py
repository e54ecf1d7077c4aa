"""The benchmarks still measure: ours and the raw limit in little time, the peers by opening them.

What they find is not looked at here, but that they find something, and notice what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.apps.body import Answer
from benchmarks.contenders import BY_NAME
from benchmarks.contenders import CONTENDERS
from benchmarks.plot import svg
from benchmarks.report import markdown
from benchmarks.run import Run
from benchmarks.run import Trial
from benchmarks.servers import Redis
from benchmarks.stage import refuse_second_runs
from benchmarks.stage import right
from benchmarks.stage import WrongResult

ROOT = Path(__file__).parent.parent

_OPEN_ALL = """
import contextlib, os, sys
from pathlib import Path
from benchmarks.contenders import CONTENDERS

folder = Path(sys.argv[1])
for contender in CONTENDERS:
    if not list(contender.missing()):
        os.environ.update(contender.environment(folder))
        with contextlib.closing(contender.open(folder)):
            print(contender.name)
"""


def run_benchmark(folder: Path, *options: str) -> Run:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1"]
    command += ["--folder", str(folder), "--output", str(folder / "found"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Run.load(folder / "found.json")


@pytest.mark.timeout(120)
def test_tasks_that_wait_are_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.waiting", "--folder", str(tmp_path)]
    command += "--pools threads --kinds async --tasks 50 -c 50 --waves 1 --idle 0.5".split()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    *_, wave, end = [line.split(" | ") for line in done.stdout.splitlines()]
    assert wave[:2] == ["| threads", "50 async"]
    assert 1.0 <= float(wave[5]) < 60
    assert float(end[-1].rstrip(" |")) > 0


# Each trial is several processes that import, one after the other: slow where others work too.
@pytest.mark.timeout(180)
def test_raw_sqlite_is_measured_with_producers_and_with_stored_results(tmp_path: Path) -> None:
    workloads = {"enqueue", "latency", "rest", "stored"}

    run = run_benchmark(tmp_path, "--only", "limit-normal", "--workloads", *workloads)

    measured = {trial.workload: trial.figures for trial in run.trials}
    assert set(measured) == workloads
    assert measured["latency"]["loaded_rate"] > 0
    assert measured["stored"]["stored"] > 1_000


@pytest.mark.timeout(180)
def test_celeriac_is_measured_and_put_into_tables_and_bars(tmp_path: Path) -> None:
    run_benchmark(tmp_path, "--only", "celeriac-normal", "--workloads", "drain")

    table = (tmp_path / "found.md").read_text()
    assert "| Celeriac, SQLite, `normal` | process death |" in table
    drawing = ElementTree.parse(tmp_path / "found.svg")
    assert "Celeriac, SQLite, normal" in list(drawing.getroot().itertext())


def test_each_contender_opens_where_its_library_and_its_server_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_ALL, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert {"celeriac-full", "celery-sqlalchemy", "limit-full"} <= set(done.stdout.split())


def test_contender_without_its_library_or_its_server_is_left_out_with_the_reason() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        contender = dataclasses.replace(BY_NAME["limit-full"], packages=("no_such_library",))
        server = Redis(f"redis://127.0.0.1:{port}/7")

        assert list(contender.missing()) == ["no_such_library is not installed"]
        assert server.missing() == (
            f"no server at 127.0.0.1:{port} (Connection refused): name one in BENCHMARK_REDIS_URL"
        )


def test_redis_database_that_holds_keys_is_not_emptied(redis_url: str) -> None:
    from benchmarks.servers import connect_redis

    client = connect_redis(redis_url)
    client.set("somebody's", "key")
    with pytest.raises(ValueError) as caught:
        Redis(redis_url).refuse_used()
    client.close()

    assert str(caught.value) == (
        f"{redis_url} is not empty, and this benchmark empties the database it uses: "
        "name an empty one in BENCHMARK_REDIS_URL"
    )


def test_wrong_answer_is_noticed() -> None:
    with pytest.raises(WrongResult, match=r"^task 3 answered None$"):
        right(3, None)


def test_second_run_of_a_task_is_noticed() -> None:
    once = [Answer(0, 0.0, 0.1, pid=1, run=1), Answer(2, 0.1, 0.2, pid=1, run=2)]
    refuse_second_runs(once)

    with pytest.raises(WrongResult, match=r"^3 runs of 2 tasks$"):
        refuse_second_runs([once[0], once[1]._replace(run=3)])


def test_tables_compare_round_by_round_and_tell_what_is_missing() -> None:
    found = {"celeriac-full": (4000.0, 9000.0), "celery-redis": (1000.0, 3000.0)}
    trials = [
        Trial(name, "drain", round, {"drain": drain, "other_load": 0.0})
        for name, drains in found.items()
        for round, drain in enumerate(drains, start=1)
    ]
    left_out = ["rq, because rq is not installed"]
    run = Run("python -m benchmarks", "today", {}, trials, left_out=left_out)

    text = markdown(run)

    assert "| Celery, Redis | nothing (Redis in memory) | – | – | – | 2,000 (1,000–3,000) |" in text
    assert "- Celeriac, SQLite, `full` drains 3.5 (3.0–4.0) times as fast as Celery, Redis." in text
    assert "- Left out: rq, because rq is not installed." in text
    assert "Latency" not in text


def test_bars_are_drawn_of_what_was_measured() -> None:
    trials = [
        Trial(contender.name, "enqueue", 1, {"enqueue": speed, "other_load": 0.0})
        for speed, contender in enumerate(CONTENDERS, start=5200)
    ]

    drawing = ElementTree.fromstring(svg(Run("", "", {}, trials)))

    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:3] == [
        "enqueue one by one, tasks/s (more is better)",
        "Celeriac, SQLite, full",
        "5,200",
    ]
    assert {contender.title.replace("`", "") for contender in CONTENDERS} < set(texts)
    assert "drain, tasks/s (more is better)" not in texts


def test_run_is_kept_and_read_again(tmp_path: Path) -> None:
    trial = Trial("limit-full", "enqueue", 1, {"enqueue": 5200.0})
    run = Run("python -m benchmarks", "today", {"disk": "ext4"}, [trial], ["it failed"])

    run.save(tmp_path / "run.json")

    assert Run.load(tmp_path / "run.json") == run
    assert json.loads(run.json())["failures"] == ["it failed"]
    assert os.listdir(tmp_path) == ["run.json"]
