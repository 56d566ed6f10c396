"""Which failures stop a job, which cost a task another try, and which cost the task; and workers that come and go."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantascope.errors import ConfigurationError, StoreUnavailableError, WorkerFailedError
from quantascope.jobs.workers.failures import MAX_DEPARTURES, MAX_TRIES, Failure, Tasks, judge


def spend(tasks, outcomes):
    """Give tasks out until none is left; `outcomes(task, number of the try)` is a Failure, or None for done."""
    tries, done = {}, []
    while len(tasks):
        task = tasks.next()
        tries[task] = tries.get(task, 0) + 1
        found = outcomes(task, tries[task])
        if found is None:
            done.append(task)
            tasks.num_done += 1
        else:
            tasks.failed(task, found, OSError("once") if found is Failure.PASSING else ValueError("bad"))
    return done, tries


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("quantascope.jobs.workers.failures._WAIT_SECONDS", 0.0)


def test_a_poisoned_task_is_set_aside_named_and_counted_and_all_others_are_done(caplog):
    tasks = Tasks(range(20), "block")
    with caplog.at_level(logging.WARNING):
        done, tries = spend(tasks, lambda task, _: Failure.OWN if task in (7, 11) else None)
    assert sorted(done) == [n for n in range(20) if n not in (7, 11)]
    assert tries[7] == tries[11] == MAX_TRIES
    with pytest.raises(WorkerFailedError, match=r"2 blocks \(7, 11\) failed 3 times .*bad\. All others are done\."):
        tasks.require_all()
    assert "block 7 is set aside: bad" in caplog.text
    assert caplog.text.count("tried again") == 4


def test_what_passes_is_tried_again_and_forgotten():
    tasks = Tasks(range(5), "block")
    done, tries = spend(tasks, lambda task, n: Failure.PASSING if task == 3 and n < MAX_TRIES else None)
    assert sorted(done) == list(range(5))
    assert tries[3] == MAX_TRIES
    assert tasks.tried_again == MAX_TRIES - 1
    tasks.require_all()


def test_a_taken_worker_is_not_held_against_its_task():
    tasks = Tasks([0, 1], "block")
    done, tries = spend(tasks, lambda task, n: Failure.DEPARTED if task == 1 and n < MAX_DEPARTURES else None)
    assert sorted(done) == [0, 1]
    assert tries[1] == MAX_DEPARTURES
    tasks.require_all()


def test_a_job_in_which_everything_fails_ends_at_once():
    tasks = Tasks(range(1000), "block")
    with pytest.raises(
        WorkerFailedError, match=r"3 blocks .*Every one that was tried failed, so 99\d others were left"
    ):
        spend(tasks, lambda *_: Failure.OWN)
    with pytest.raises(ConfigurationError):
        Tasks([0], "block").failed(0, Failure.FATAL, ConfigurationError("never"))
    gone = Tasks([0], "block")
    for _ in range(MAX_TRIES - 1):
        gone.failed(gone.next(), Failure.PASSING, StoreUnavailableError("gone"))
    with pytest.raises(StoreUnavailableError):
        gone.failed(gone.next(), Failure.PASSING, StoreUnavailableError("gone"))


@given(st.dictionaries(st.integers(0, 30), st.lists(st.sampled_from(list(Failure)[1:]), max_size=6)))
def test_every_task_is_done_or_set_aside_and_none_is_tried_for_ever(script):
    tasks = Tasks(range(31), "block")
    tasks.num_done = 1  # else the first three that fail end it all

    def outcome(task, number):
        planned = script.get(task, [])
        return planned[number - 1] if number <= len(planned) else None

    done, tries = spend(tasks, outcome)
    assert sorted([*done, *tasks.set_aside]) == list(range(31))
    assert max(tries.values()) <= MAX_TRIES + MAX_DEPARTURES


def test_errors_are_told_apart():
    from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

    def task_error(cause):
        return RayTaskError("f", "trace", cause)

    assert judge(task_error(ConfigurationError("x")))[0] is Failure.FATAL
    assert judge(task_error(WorkerFailedError("x")))[0] is Failure.HOPELESS
    assert judge(task_error(ConnectionResetError("x")))[0] is Failure.PASSING
    assert judge(task_error(StoreUnavailableError("x")))[0] is Failure.PASSING
    assert judge(task_error(ValueError("x")))[0] is Failure.OWN
    assert judge(ActorDiedError())[0] is Failure.OWN
    assert judge(NodeDiedError("x"))[0] is Failure.OWN
