"""A run from configuration to record: resumed to the bit, skipped when complete, refused when stale."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
from tests.conftest import Compose

from bn_replication import checkpoint, records
from bn_replication.errors import UserError
from bn_replication.runner import Interrupted, run

MLP = ("setting=mnist", "study=t", "steps=40", "evaluate.times=8", "probe.points=4", "optimizer.rate=0.05")
NOISY = (*MLP, "norm=noisy", "measure.landscape=true")
INCEPTION = ("setting=inception", "study=t", "variant=bn_x5", "steps=6", "evaluate.times=3", "probe.points=2")


def files_of(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in (records.CURVES, records.ACTIVATIONS)}


def place(cfg, arm: str) -> Path:
    return cfg.machine.results / "smoke" / cfg.study / arm / f"seed={cfg.seed}"


@pytest.mark.parametrize("overrides", [MLP, INCEPTION], ids=["mlp", "inception"])
def test_the_same_seed_twice_is_the_same_to_the_bit_and_another_is_not(composed: Compose, overrides) -> None:
    cfg, _ = composed(*overrides)
    other, _ = composed(*overrides, "seed=1")
    run(cfg, "first")
    run(cfg, "second")
    run(other, "first")
    first, second = (files_of(place(cfg, arm)) for arm in ("first", "second"))
    assert first == second
    assert files_of(place(other, "first"))[records.CURVES] != first[records.CURVES]


@pytest.mark.parametrize("overrides", [MLP, INCEPTION, NOISY], ids=["mlp", "inception", "noisy"])
def test_a_run_stopped_and_resumed_equals_one_left_alone(composed: Compose, overrides) -> None:
    cfg, _ = composed(*overrides)
    run(cfg, "alone")
    stops = iter((1, 2, cfg.steps - 1))

    def stop_in_between(step: int, *_: object) -> None:
        nonlocal limit
        if step >= limit:
            limit = next(stops, cfg.steps + 1)
            os.kill(os.getpid(), signal.SIGTERM)

    limit = next(stops)
    for _ in range(9):
        try:
            outcome = run(cfg, "stopped", stop_in_between)
            break
        except Interrupted:
            assert records.read_run_json(place(cfg, "stopped")) is None
    assert outcome.status == "completed"
    assert files_of(place(cfg, "stopped")) == files_of(place(cfg, "alone"))
    alone, stopped = (records.read_run_json(place(cfg, arm)) for arm in ("alone", "stopped"))
    assert alone is not None
    assert stopped is not None
    assert alone["summary"] == stopped["summary"]
    assert not (place(cfg, "stopped") / checkpoint.CURRENT).exists()


def test_a_resumed_run_stores_the_rules_that_stood_when_it_began(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at half a run, changes the rule and goes on has changed it after the run began."""
    cfg, _ = composed(*MLP)

    def stop(step: int, *_: object) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("bn_replication.runner.digests_for_study", lambda study: {"a-claim": "as it was"})
    monkeypatch.setattr("bn_replication.runner.time.time", lambda: 1_000_000_000.0)
    with pytest.raises(Interrupted):
        run(cfg, "stopped", stop)
    monkeypatch.setattr("bn_replication.runner.digests_for_study", lambda study: {"a-claim": "changed since"})
    monkeypatch.setattr("bn_replication.runner.time.time", lambda: 1_000_009_999.0)
    run(cfg, "stopped")
    record = records.read_run_json(place(cfg, "stopped"))
    assert record is not None
    assert record["rules"] == {"a-claim": "as it was"}
    assert record["started"].startswith("2001-09-09T01:46:40")


def test_rows_after_the_checkpoint_are_not_doubled(composed: Compose) -> None:
    """What a killed run wrote after its last checkpoint is cut off and written again."""
    cfg, _ = composed(*MLP, "machine.checkpoint_every=10")
    run(cfg, "alone")
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(cfg, "killed", 23))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with open(place(cfg, "killed") / records.CURVES, "a") as file:
        file.write('{"step":25,"half a ro')  # a row that the kill cut in two
    run(cfg, "killed")
    assert files_of(place(cfg, "killed")) == files_of(place(cfg, "alone"))


def _killed_at(cfg, arm: str, limit: int) -> None:
    def kill(step: int, *_: object) -> None:
        if step >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

    run(cfg, arm, kill)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    path = tmp_path / checkpoint.CURRENT
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        state = checkpoint.load(tmp_path)
    assert state == {"step": 1}


def test_watching_changes_nothing(composed: Compose) -> None:
    """Probes on or off, logging offline or not at all: bitwise the same curve."""
    watched, _ = composed(*MLP)
    unwatched, _ = composed(*MLP, "probe.enabled=false")
    run(watched, "watched")
    run(unwatched, "unwatched")
    curves = [files_of(place(watched, arm))[records.CURVES] for arm in ("watched", "unwatched")]
    assert curves[0] == curves[1]
    assert files_of(place(unwatched, "unwatched"))[records.ACTIVATIONS] == ""


def test_evaluating_more_often_changes_no_number_of_training(composed: Compose) -> None:
    seldom, _ = composed(*MLP, "evaluate.times=2")
    often, _ = composed(*MLP, "evaluate.times=8")
    run(seldom, "seldom")
    run(often, "often")

    def held_out(arm: str) -> dict[int, float]:
        rows = records.read_rows(place(seldom, arm) / records.CURVES)
        return {row["step"]: row["test_loss"] for row in rows}

    at = held_out("seldom")
    assert len(at) == 3
    assert at == {step: loss for step, loss in held_out("often").items() if step in at}


def test_a_complete_run_is_skipped_and_a_stale_one_refused_by_the_name_of_what_changed(composed: Compose) -> None:
    cfg, _ = composed(*MLP)
    stale, _ = composed(*MLP, "optimizer.rate=0.06")
    elsewhere, _ = composed(*MLP, "machine.checkpoint_every=7", "wandb.project=other")
    assert run(cfg, "a").status == "completed"
    before = (place(cfg, "a") / records.RUN).read_bytes()
    assert run(cfg, "a").status == "skipped"
    assert run(elsewhere, "a").status == "skipped"
    with pytest.raises(UserError, match=r"optimizer\.rate: 0\.05 there, 0\.06 here"):
        run(stale, "a")
    assert (place(cfg, "a") / records.RUN).read_bytes() == before


def test_divergence_is_a_result_that_is_not_repeated(composed: Compose) -> None:
    wild = ("optimizer.rate=1e8", "model.lrn=false")
    cfg, _ = composed("setting=inception", "variant=inception", "study=t", "steps=30", *wild)
    outcome = run(cfg, "a")
    record = records.read_run_json(place(cfg, "a"))
    assert record is not None
    assert outcome.status == record["status"] == "diverged"
    assert 0 < record["steps_done"] <= 30
    assert "finite" in record["reason"]
    assert run(cfg, "a").status == "skipped"


WILD = ("setting=mnist", "study=t", "norm=none", "model.act=relu", "model.initialisation=he", "model.hidden=[8,8]")


def test_a_diverged_run_has_done_the_updates_up_to_the_one_whose_loss_was_no_number(composed: Compose) -> None:
    """The first update makes weights whose product no float32 holds, so the second's loss is no number."""
    cfg, _ = composed(*WILD, "steps=10", "evaluate.times=10", "optimizer.rate=1e30")
    run(cfg, "a")
    record = records.read_run_json(place(cfg, "a"))
    assert record is not None
    assert (record["status"], record["steps_done"]) == ("diverged", 2)
    assert record["reason"] == "loss or weights ceased to be finite at step 2"
    assert [row["step"] for row in records.read_rows(place(cfg, "a") / records.CURVES)] == [0, 1]


def test_the_best_accuracy_is_the_highest_of_the_curve_and_not_its_last(composed: Compose) -> None:
    """At this rate the net learns something once and then falls to chance for good."""
    cfg, _ = composed(*WILD, "steps=5", "evaluate.times=5", "optimizer.rate=30", "seed=1")
    run(cfg, "a")
    accuracies = [row["test_accuracy"] for row in records.read_rows(place(cfg, "a") / records.CURVES)]
    record = records.read_run_json(place(cfg, "a"))
    assert record is not None
    assert accuracies[-1] == 0.1 < max(accuracies)
    assert record["summary"]["best_test_accuracy"] == max(accuracies)
    assert record["summary"]["test_accuracy"] == 0.1


def test_what_a_run_has_taken_and_where_it_went_on_is_kept_over_every_resume(composed: Compose) -> None:
    """Stopped twice, each time in another environment than it goes on in, and after a thousand seconds more."""
    cfg, _ = composed(*MLP)

    def stop_at(limit: int):
        return lambda step, *_: os.kill(os.getpid(), signal.SIGTERM) if step == limit else None

    for limit, revision in ((10, "0123abc"), (20, "4567def")):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*goes on in another environment")
            with pytest.raises(Interrupted):
                run(cfg, "a", stop_at(limit))
        state = checkpoint.load(place(cfg, "a"))
        assert state is not None
        here = state["environment"]["git"]
        environment = state["environment"] | {"git": revision}
        changes = {"seconds": state["seconds"] + 1000, "environment": environment}
        checkpoint.save(place(cfg, "a"), state | changes)
    with pytest.warns(UserWarning, match="git: 4567def there"):
        run(cfg, "a")
    record = records.read_run_json(place(cfg, "a"))
    assert record is not None
    assert record["environment"]["resumed"] == [
        {"step": 10, "git": ["0123abc", here]},
        {"step": 20, "git": ["4567def", here]},
    ]
    assert 2000 < record["seconds"] < 2600


def test_two_processes_on_one_run_one_works_and_the_other_says_so(composed: Compose) -> None:
    cfg, _ = composed(*MLP)
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()

    def hold(step: int, *_: object) -> None:
        ready.set()
        go.wait(30)

    process = context.Process(target=run, args=(cfg, "a", hold))
    process.start()
    assert ready.wait(30)
    began = time.monotonic()
    with pytest.raises(UserError, match="another process"):
        run(cfg, "a")
    assert time.monotonic() - began < 2
    process.kill()  # a dead holder leaves no stale lock
    process.join()
    assert run(cfg, "a").status == "completed"


def test_an_unwritable_place_is_one_line_and_loses_nothing(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a directory")
    cfg, _ = composed(*MLP)
    with pytest.raises(UserError, match=r"expected room to write.*machine\.results"):
        run(cfg, "a")
    assert (tmp_path / "runs").read_text() == "not a directory"


def test_the_record_says_what_ran_where_and_under_which_rules(composed: Compose) -> None:
    cfg, arm = composed("experiment=fig1_mnist", "steps=4", "norm=none")
    run(cfg, arm)
    record = records.read_run_json(place(cfg, arm))
    assert record is not None
    assert record["arm"] == "norm=none,steps=4"
    assert record["choices"]["norm"] == "none"
    assert set(record["rules"]) >= {"fig1-faster", "fig1-higher", "fig1-stable"}
    assert record["files"][records.CURVES] == records.digest(place(cfg, arm) / records.CURVES)
    assert json.dumps(record["config"]) == json.dumps(cfg.identity() | {}, sort_keys=True)
    assert record["environment"]["torch"]
