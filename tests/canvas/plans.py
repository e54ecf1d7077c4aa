"""Random canvases as plans: made from a seed, built into signatures, and what must come of them.

A plan is plain data: dictionaries that JSON can hold, each a task, a ``chain``, a ``group``, a
``chord``, a ``map`` or ``chunks``. :func:`build` makes Celery's signatures of it;
:func:`foresee` is the model: it says which tasks run how often, which callbacks are called, and
what the value is.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from typing import Any
from typing import NamedTuple

import celery
from celery import chain
from celery import chord
from celery import group
from celery.utils import uuid

Plan = dict[str, Any]

#: What a task does, and how often.
WAYS = {
    "ok": 60,
    "fail": 9,
    "retry": 5,
    "give up": 2,
    "replace": 6,
    "reject": 2,
    "ignore": 2,
    "odd": 2,
    "expired": 2,
    "revoked": 2,
}
if celery.VERSION < (5, 7):  # What follows is published before the result, which is no JSON.
    del WAYS["odd"]
#: These end the process that runs the task, and so take their time.
DEATHS = {"die": 1, "hang": 1}
#: How often a task does not begin, or does not call its error callbacks.
_NOT_RUN = ("expired", "revoked")
_WITHOUT_ERRBACKS = (*_NOT_RUN, "ignore")
SUCCEEDING = ("ok", "retry", "replace")
ERRBACKS = ("on_error", "on_old_error", "on_bad_error")
#: How many tasks a canvas has at most.
SIZE = 25


def digest_of(key: int, args: Any) -> str:
    """Return what the task ``key`` makes of its arguments: short, whatever they are."""
    return hashlib.sha256(json.dumps([key, *args]).encode()).hexdigest()[:10]


class Generator:
    """Makes one plan from a seed.

    :param ways: what tasks do, with weights.
    """

    def __init__(self, seed: str, ways: dict[str, int] | None = None) -> None:
        self._random = random.Random(seed)
        self._ways = ways or WAYS
        self._keys = 0

    def plan(self, depth: int = 4) -> Plan:
        """Return a plan that nests up to ``depth`` levels."""
        while True:
            self._keys = 0
            plan = self._node(self._random.randint(1, depth))
            if "do" not in plan and is_sound(plan):
                return plan

    def _key(self) -> int:
        self._keys += 1
        return self._keys

    def _node(self, depth: int, *, in_worker: bool = False, in_group: bool = False) -> Plan:
        kinds = {"task": 8}
        if depth > 0 and self._keys < SIZE:
            kinds |= {"chain": 9, "chord": 7, "map": 1}
            if not in_group:  # Celery flattens a group in a group, in an order of its own.
                kinds |= {"group": 5, "chunks": 1}
        kind = self._random.choices(list(kinds), list(kinds.values()))[0]
        made: Plan = getattr(self, f"_{kind}")(depth - 1, in_worker)
        return made

    def _task(self, depth: int, in_worker: bool) -> Plan:
        ways = dict(self._ways)
        if in_worker:
            del ways["revoked"], ways["replace"]
        do = self._random.choices(list(ways), list(ways.values()))[0]
        plan: Plan = {"do": do, "key": self._key(), "immutable": self._random.random() < 0.2}
        if do == "replace":
            plan["plan"] = self._node(max(depth, 0), in_worker=True)
            if "do" not in plan["plan"]:
                return plan
        if self._random.random() < 0.1:
            plan["links"] = [self._key()]
        return self._with_errbacks(plan)

    def _with_errbacks(self, plan: Plan) -> Plan:
        if self._random.random() < 0.2:
            plan["errbacks"] = [
                [self._random.choice(ERRBACKS), self._key()]
                for _ in range(self._random.randint(1, 2))
            ]
        return plan

    def _chain(self, depth: int, in_worker: bool) -> Plan:
        steps = [self._node(depth, in_worker=in_worker) for _ in range(self._random.randint(1, 4))]
        if len(steps) == 1:
            _without_errbacks(steps[0])
        plan: Plan = {"chain": steps}
        return self._with_errbacks(plan) if all(map(_is_plain, steps)) else plan

    def _group(self, depth: int, in_worker: bool) -> Plan:
        count = self._random.choice([0, 1, 2, 2, 3, 3, 4])
        return {"group": self._members(depth, in_worker, count)}

    def _chord(self, depth: int, in_worker: bool) -> Plan:
        count = self._random.choice([0, 1, 2, 2, 3, 3, 4])
        header = self._members(depth, in_worker, count)
        return {"chord": header, "body": self._node(depth, in_worker=in_worker)}

    def _members(self, depth: int, in_worker: bool, count: int) -> list[Plan]:
        members = [self._node(depth, in_worker=in_worker, in_group=True) for _ in range(count)]
        # Celery takes a group of one that is a group for that group.
        if count == 1 and _ends_in_group(members[0]):
            members.append(self._task(0, in_worker))
        if len(members) == 1:
            _without_errbacks(members[0])
        return members

    def _map(self, depth: int, in_worker: bool) -> Plan:
        numbers = [self._random.choice([-1, *range(20)]) for _ in range(3)]
        return {"map": numbers, "star": self._random.random() < 0.5}

    def _chunks(self, depth: int, in_worker: bool) -> Plan:
        numbers = [self._random.choice([-1, *range(40)]) for _ in range(5)]
        return {"chunks": numbers, "n": 2}


def is_sound(plan: Plan) -> bool:
    """Say whether a plan is without what Celery itself, on every broker, does not do as written.

    It drops what follows an empty group in a chord's callback, unpacks a group that is alone in a
    chain into the group around it, and runs steps after two groups once for each of the second.
    It keeps the list of a group of one that comes after a group, and starts a chord that comes
    after a chord with a group as callback although a member of that group failed.
    Before 5.7 nothing counts in a chord for a chain that ends in an empty group, and some chains
    with one in their midst can not be sent.
    """
    if celery.VERSION < (5, 7) and {"group": []} in plan.get("chain", ()):
        return False
    steps = _flat(plan) if "chain" in plan else []
    ends = [_ends_in_group(step) for step in steps]
    if any(ends[at] and ends[at + 1] for at in range(len(ends) - 2)):
        return False
    if any(_is_taken_otherwise(*pair) for pair in pairwise(plan.get("chain", ()))):
        return False
    if "chord" in plan and plan["body"].get("group") == []:
        return False
    members = plan.get("group", plan.get("chord", []))
    if any("chain" in each and _flat(each)[1:] == [] and _ends_in_group(each) for each in members):
        return False
    inner = [*members, *plan.get("chain", ()), plan.get("body"), plan.get("plan")]
    return all(is_sound(each) for each in inner if each)


def _is_taken_otherwise(step: Plan, following: Plan) -> bool:
    is_group_of_one = len(following.get("group", ())) == 1
    is_chord_after_chord = "chord" in step and "chord" in following
    return _ends_in_group(step) and (is_group_of_one or is_chord_after_chord)


def _flat(plan: Plan) -> list[Plan]:
    """Return the steps of a chain and of the chains in it."""
    steps: list[Plan] = []
    for step in plan["chain"]:
        while "group" in step and len(step["group"]) == 1:
            step = step["group"][0]
        steps += _flat(step) if "chain" in step else [step]
    full = [step for step in steps if step.get("group") != []]
    return full or steps[:1]


def _without_errbacks(plan: Plan) -> None:
    """Take the error callbacks off a chain in a chain or group of one, which Celery forgets."""
    if "chain" in plan:
        plan.pop("errbacks", None)


def _is_plain(plan: Plan) -> bool:
    """Say whether this is one task, that at most another one replaces."""
    return "do" in plan and "do" in plan.get("plan", plan)


def _ends_in_group(plan: Plan) -> bool:
    if "chain" in plan:
        steps = _steps(plan)
        return bool(steps) and _ends_in_group(steps[-1])
    if "chord" in plan:
        return _ends_in_group(plan["body"])
    return "group" in plan or "chunks" in plan


def ways_in(plan: Any) -> Counter[str]:
    """Count what a plan is made of."""
    found: Counter[str] = Counter()
    if isinstance(plan, list):
        for each in plan:
            found += ways_in(each)
    elif isinstance(plan, dict):
        found[plan["do"] if "do" in plan else next(iter(plan))] += 1
        found["link"] += len(plan.get("links", ()))
        found["link_error"] += len(plan.get("errbacks", ()))
        for name in ("chain", "group", "chord", "body", "plan"):
            found += ways_in(plan.get(name))
    return +found


# Signatures


def build(plan: Plan, app: Any, revoked: list[str] | None = None) -> Any:
    """Return the signature of a plan.

    :param revoked: is given the ids of the tasks to revoke before it is sent.
    """
    tasks = app.tasks
    if "chain" in plan:
        made: Any = chain(*[build(each, app, revoked) for each in plan["chain"]])
    elif "group" in plan:
        made = group([build(each, app, revoked) for each in plan["group"]], app=app)
    elif "chord" in plan:
        header = [build(each, app, revoked) for each in plan["chord"]]
        made = chord(header, build(plan["body"], app, revoked), app=app)
    elif "map" in plan:
        it = [[each] for each in plan["map"]] if plan["star"] else plan["map"]
        made = tasks["digest"].starmap(it) if plan["star"] else tasks["digest"].map(it)
    elif "chunks" in plan:
        # Celery gives the tasks of a generator new ids each time that it looks at them.
        chunks = tasks["digest"].chunks([[each] for each in plan["chunks"]], plan["n"])
        made = group(list(chunks.group().tasks), app=app)
    else:
        made = _build_task(plan, tasks, revoked)
    for key in plan.get("links", ()):
        made.link(tasks["note"].s(key=key))
    for name, key in plan.get("errbacks", ()):
        made.link_error(tasks[name].s(key=key))
    return made


def _build_task(plan: Plan, tasks: Any, revoked: list[str] | None) -> Any:
    options = {"key": plan["key"], "do": plan["do"]}
    if "plan" in plan:
        options["plan"] = plan["plan"]
    made = tasks["step"].signature(kwargs=options, immutable=plan["immutable"])
    if plan["do"] == "expired":
        made.set(expires=-60)
    elif plan["do"] == "hang":
        made.set(time_limit=0.3)
    elif plan["do"] == "revoked":
        assert revoked is not None
        revoked.append(uuid())
        made.set(task_id=revoked[-1])
    return made


# The model


class Ended(NamedTuple):
    """How a part of a canvas ends."""

    value: Any = None
    #: What its first task that did not succeed did; empty if all did.
    broken: str = ""


class Foreseen:
    """What must come of a plan."""

    def __init__(self) -> None:
        #: How often each task runs, and how often each callback is called, by their keys.
        self.runs: Counter[int] = Counter()
        self.links: Counter[int] = Counter()
        self.errbacks: Counter[int] = Counter()
        #: The tasks of which Celery keeps no state.
        self.ignored: set[int] = set()
        self.end = Ended()


def foresee(plan: Plan) -> Foreseen:
    """Return what must come of a plan, as Celery's guide has it."""
    foreseen = Foreseen()
    foreseen.end = _foresee(plan, (), foreseen)
    return foreseen


def _foresee(plan: Plan, given: tuple[Any, ...], into: Foreseen) -> Ended:
    if "chain" in plan:
        return _foresee_chain(plan, given, into)
    if "group" in plan:
        return _foresee_group(plan["group"], given, into)
    if "chord" in plan:
        header = _foresee_group(plan["chord"], given, into)
        if header.broken:
            into.errbacks.update(_errbacks_of_body(plan["body"]))
            return header._replace(broken="chord")
        return _foresee(plan["body"], (header.value,), into)
    if "map" in plan:
        return _foresee_map(plan["map"])
    if "chunks" in plan:
        return _foresee_group(_members_of(plan), given, into)
    return _foresee_task(plan, given, into)


def _foresee_task(plan: Plan, given: tuple[Any, ...], into: Foreseen) -> Ended:
    do, key = plan["do"], plan["key"]
    if do not in _NOT_RUN:
        into.runs[key] += 2 if do in ("retry", "give up") else 1
    if do == "ignore":
        into.ignored.add(key)
    args = () if plan["immutable"] else given
    end = Ended(digest_of(key, args), "" if do in SUCCEEDING else do)
    if do == "replace":
        end = _foresee(plan["plan"], (), into)
    if not end.broken:
        into.links.update(plan.get("links", ()))
    elif end.broken not in _WITHOUT_ERRBACKS:
        into.errbacks.update(key for _, key in plan.get("errbacks", ()))
    return end


def _errbacks_of_body(body: Plan) -> list[int]:
    """Return the keys of the error callbacks that are called when a chord's header fails."""
    found = [key for _, key in body.get("errbacks", ())]
    if "chord" in body:
        found += _errbacks_of_body(body["body"])
    elif "group" in body:
        found += [key for member in body["group"] for key in _errbacks_of_body(member)]
    elif "chain" in body and _steps(body):
        found = _errbacks_of_body(_steps(body)[0])
    return found


def _steps(plan: Plan) -> list[Plan]:
    """Return the steps that Celery makes of a chain's: it unpacks groups of one and chains.

    A chain's error callbacks are those of each of its tasks.
    """
    steps: list[Plan] = []
    for step in plan["chain"]:
        while "group" in step and len(step["group"]) == 1:
            step = step["group"][0]
        steps += _steps(step) if "chain" in step else [step]
    if "errbacks" in plan:
        steps = [
            {**step, "errbacks": [*step.get("errbacks", ()), *plan["errbacks"]]} for step in steps
        ]
    full = [step for step in steps if step.get("group") != []]
    folded: list[Plan] = []
    for step in full:
        if folded and _ends_in_group(folded[-1]):
            folded[-1] = _followed(folded[-1], step)
        else:
            folded.append(step)
    return folded or steps[:1]


def _followed(plan: Plan, step: Plan) -> Plan:
    """Return the chord that Celery makes of what ends in a group and the step after it."""
    if "chord" in plan:
        return {**plan, "body": _followed(plan["body"], step)}
    if "chain" in plan:
        return {"chain": [*plan["chain"], step]}
    return {"chord": _members_of(plan), "body": step}


def _members_of(plan: Plan) -> list[Plan]:
    if "group" in plan:
        members: list[Plan] = plan["group"]
        return members
    parts = range(0, len(plan["chunks"]), plan["n"])
    return [{"map": plan["chunks"][at : at + plan["n"]], "star": True} for at in parts]


def _foresee_chain(plan: Plan, given: tuple[Any, ...], into: Foreseen) -> Ended:
    end = Ended()
    for step in _steps(plan):
        end = _foresee(step, given, into)
        if end.broken:
            return end
        given = (end.value,)
    return end


def _foresee_group(members: list[Plan], given: tuple[Any, ...], into: Foreseen) -> Ended:
    return _together([_foresee(member, given, into) for member in members])


def _foresee_map(numbers: list[int]) -> Ended:
    values = [digest_of(0, [number]) for number in numbers]
    return Ended(values, "fail" if -1 in numbers else "")


def _together(ends: list[Ended]) -> Ended:
    broken = [end.broken for end in ends if end.broken]
    return Ended([end.value for end in ends], broken[0] if broken else "")
