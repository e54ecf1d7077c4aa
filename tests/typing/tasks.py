"""Only checked by mypy and pyright, never run: a task carries its function's own signature."""

from __future__ import annotations

from typing import Any

from celery import chain
from celery import group
from celery.canvas import Signature
from celery.result import EagerResult
from flask import Flask
from typing_extensions import assert_type

from celeriac import Celeriac
from celeriac import make_celery
from celeriac.result import AsyncResult
from celeriac.task import Task

celery = Celeriac()


@celery.task
def add(a: int, b: int) -> int:
    return a + b


@celery.task()
def greet(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


@celery.task(bind=True, max_retries=5)
def fetch(self: Task[..., Any], url: str) -> bytes:
    raise self.retry(countdown=1)


@celery.task(bind=True)
def count(self: Task[..., Any]) -> None:
    self.update_state(state="PROGRESS", meta={"id": self.request.id})


class Audited(Task[..., Any]):
    def audit(self) -> list[str]:
        return []


@celery.task(base=Audited)
def audited(a: int) -> int:
    return a


@celery.task
async def download(url: str) -> bytes:
    return url.encode()


@celery.task(bind=True, max_retries=5)
async def crawl(self: Task[..., Any], url: str, *, depth: int = 1) -> list[str]:
    body = await download(url)
    return [body.decode(), str(self.request.id)]


@celery.task(ignore_result=True)
async def refresh() -> None:
    pass


def results_have_the_type_of_the_function() -> None:
    assert_type(add.delay(1, 2), AsyncResult[int])
    assert_type(add.delay(1, b=2).get(), int)
    assert_type(add.delay(1, 2).get(timeout=3), int)
    assert_type(add.apply_async((1, 2), countdown=3).get(), int)
    assert_type(add.apply((1, 2)), EagerResult[int])
    assert_type(add(1, 2), int)
    assert_type(add.delay(1, 2).explain(), str)
    assert_type(add.delay_many([(1, 2), (3, 4)], countdown=3), list[AsyncResult[int]])
    assert_type(greet.delay_many({"name": name} for name in "ab"), list[AsyncResult[str]])
    assert_type(add.AsyncResult("id"), AsyncResult[int])
    assert_type(greet.delay("you", loud=True).get(), str)
    assert_type(greet.apply_async(["you"], {"loud": True}).get(), str)


def bound_tasks_are_called_without_self() -> None:
    assert_type(fetch.delay("https://flask"), AsyncResult[bytes])
    assert_type(fetch("https://flask"), bytes)
    assert_type(fetch.s("https://flask"), Signature[bytes])
    assert_type(count.delay(), AsyncResult[None])


def signatures_are_whole_or_lack_the_first_argument() -> None:
    assert_type(add.s(1, 2), Signature[int])
    assert_type(add.si(1, 2), Signature[int])
    assert_type(add.signature((1,), countdown=3), Signature[int])
    chain(add.s(1, 2), add.s(3))
    group(add.s(1, 2), greet.s("you"))
    greet.s(loud=True)


async def async_tasks_have_the_type_of_what_they_return() -> None:
    assert_type(download.delay("https://flask"), AsyncResult[bytes])
    assert_type(download.delay("https://flask").get(), bytes)
    assert_type(await download("https://flask"), bytes)
    assert_type(download.s("https://flask"), Signature[bytes])
    assert_type(crawl.delay("https://flask", depth=2), AsyncResult[list[str]])
    assert_type(crawl.apply_async(["https://flask"]).get(), list[str])
    assert_type(await crawl("https://flask"), list[str])
    assert_type(refresh.delay(), AsyncResult[None])
    chain(download.s("https://flask"), crawl.s())


def wrong_arguments_are_found() -> None:
    add.delay(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(1, "2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.delay(1, 2, c=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add("1", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.si(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.s("1", 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
    greet.delay_many(["you"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    fetch.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fetch.delay(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    download.delay(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.delay("https://flask", 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    greet.delay("you", True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def base_class_of_ones_own_is_kept() -> None:
    assert_type(audited, Audited)
    assert_type(audited.audit(), list[str])


def factories() -> None:
    app = Flask(__name__)
    assert_type(make_celery(app), Celeriac)
    assert_type(Celeriac(app, broker="memory://"), Celeriac)
    assert_type(celery.flask_app, Flask | None)
    celery.init_app(app)
