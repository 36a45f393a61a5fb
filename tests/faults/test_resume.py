"""Going on from a checkpoint that something else has come to: another version, another configuration, a stranger."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.processes import INCEPTION, MLP, configuration, ending, finished, place, record_of

from bn_replication import checkpoint, records
from bn_replication.errors import UserError
from bn_replication.runner import STARTED, Interrupted, run
from bn_replication.schema import Config

SHORT = (*MLP, "steps=40")


def stopped(cfg: Config, arm: str, at: int) -> Path:
    """Stop a run at a step by a signal; return its directory, with its checkpoint."""

    def stop(step: int, *_: object) -> None:
        if step == at:
            os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        run(cfg, arm, stop)
    return place(cfg, arm)


def rewritten(directory: Path, **changes: Any) -> None:
    """Save the checkpoint of ``directory`` again, with other values."""
    state = checkpoint.load(directory)
    assert state is not None
    checkpoint.save(directory, state | changes)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "shorter than a digest": lambda content: content[:10],
    "a bit in front": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit amid the weights": lambda content: _flipped(content, len(content) // 2),
    "a bit of the digest": lambda content: _flipped(content, len(content) - 1),
    "zeros from a page on": lambda content: content[:4096] + bytes(len(content) - 4096),
}


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return finished(configuration(tmp_path_factory.mktemp("alone"), *SHORT), "alone")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_goes_on_to_the_same_bits(
    tmp_path: Path, damage: str, alone: dict[str, Any]
) -> None:
    cfg = configuration(tmp_path, *SHORT, "machine.checkpoint_every=10")
    newest = stopped(cfg, "a", 27) / checkpoint.CURRENT
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    reached: list[int] = []
    with pytest.warns(UserWarning, match=rf"{checkpoint.CURRENT}: found a damaged checkpoint .*, going back"):
        assert run(cfg, "a", lambda step, *_: reached.append(step)).status == "completed"
    assert reached[0] == 21
    assert ending(place(cfg, "a")) == alone


def test_where_both_checkpoints_are_damaged_both_are_named_and_the_run_begins_again(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    cfg = configuration(tmp_path, *SHORT, "machine.checkpoint_every=10")
    directory = stopped(cfg, "a", 27)
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (directory / name).write_bytes(_flipped((directory / name).read_bytes(), 5000))
    reached: list[int] = []
    with pytest.warns(UserWarning, match="found a damaged checkpoint") as told:
        assert run(cfg, "a", lambda step, *_: reached.append(step)).status == "completed"
    assert [Path(str(each.message).partition(":")[0]).name for each in told] == [
        checkpoint.CURRENT,
        checkpoint.PREVIOUS,
    ]
    assert reached[0] == 0
    assert ending(directory) == alone


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b"", None], ids=str)
def test_checkpoints_of_a_run_that_nobody_can_tell_are_refused_and_kept(
    tmp_path: Path, content: bytes | None, alone: dict[str, Any]
) -> None:
    cfg = configuration(tmp_path, *SHORT, "machine.checkpoint_every=10")
    directory = stopped(cfg, "a", 27)
    marker = directory / STARTED
    whole = marker.read_bytes()
    marker.unlink()
    if content is not None:
        marker.write_bytes(content)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{STARTED}: found no configuration beside a checkpoint, expected"):
            run(cfg, "a")
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    marker.write_bytes(whole)
    assert run(cfg, "a").status == "completed"
    assert ending(directory) == alone


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"], ids=str)
def test_where_there_is_no_checkpoint_a_damaged_mark_is_written_anew(
    tmp_path: Path, content: bytes, alone: dict[str, Any]
) -> None:
    cfg = configuration(tmp_path, *SHORT)
    place(cfg, "a").mkdir(parents=True)
    (place(cfg, "a") / STARTED).write_bytes(content)
    assert run(cfg, "a").status == "completed"
    assert ending(place(cfg, "a")) == alone


def test_another_version_of_torch_is_refused_with_the_difference_and_recorded_when_asked(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT)
    directory = stopped(cfg, "a", 17)
    state = checkpoint.load(directory)
    assert state is not None
    here = state["environment"]["torch"]
    rewritten(directory, environment=state["environment"] | {"torch": "2.0.0"})
    with pytest.raises(UserError, match=rf"torch: 2\.0\.0 there, {here.replace('+', '.')} here.*resume_anyway=true"):
        run(cfg, "a")
    anyway = configuration(tmp_path, *SHORT, "machine.resume_anyway=true")
    with pytest.warns(UserWarning, match=r"goes on in another environment \(torch: 2\.0\.0 there"):
        assert run(anyway, "a").status == "completed"
    assert record_of(directory)["environment"]["resumed"] == [{"step": 17, "torch": ["2.0.0", here]}]


def test_another_revision_of_the_code_is_said_and_recorded(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT)
    directory = stopped(cfg, "a", 17)
    state = checkpoint.load(directory)
    assert state is not None
    now = state["environment"]["git"]
    rewritten(directory, environment=state["environment"] | {"git": "0123abc"})
    with pytest.warns(UserWarning, match="git: 0123abc there"):
        directory = stopped(cfg, "a", 30)
    assert run(cfg, "a").status == "completed"  # of the same revision as the last: nothing more to say
    record = record_of(directory)
    assert record["environment"]["resumed"] == [{"step": 17, "git": ["0123abc", now]}]
    assert "resumed" not in record_of_alone(tmp_path)["environment"]
    assert record["weights"] == record_of_alone(tmp_path)["weights"]


def record_of_alone(tmp_path: Path) -> dict[str, Any]:
    cfg = configuration(tmp_path, *SHORT)
    run(cfg, "alone")
    return record_of(place(cfg, "alone"))


def test_another_configuration_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT)
    directory = stopped(cfg, "a", 17)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UserError, match=r"batch_size: 60 there, 50 here; optimizer\.momentum: 0\.9 there, 0\.8 here"):
        run(configuration(tmp_path, *SHORT, "batch_size=50", "optimizer.momentum=0.8"), "a")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_failed_run_goes_on_from_its_checkpoint_and_keeps_to_its_configuration(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT, "machine.checkpoint_every=10")

    def fails(step: int, *_: object) -> None:
        if step == 25:
            raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError):
        run(cfg, "a", fails)
    record = record_of(place(cfg, "a"))
    assert record["status"] == "failed"
    assert record["reason"] == "ZeroDivisionError: a defect"
    assert record["steps_done"] == 25
    with pytest.raises(UserError, match="batch_size: 60 there, 50 here"):
        run(configuration(tmp_path, *SHORT, "batch_size=50"), "a")
    reached = []
    assert run(cfg, "a", lambda step, *_: reached.append(step)).status == "completed"
    assert reached[0] == 21
    assert finished(cfg, "a") == finished(cfg, "alone")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_a_divergence_with_its_step(tmp_path: Path, value: float) -> None:
    """Put there between two steps, as a fault of memory would."""
    cfg = configuration(tmp_path, *INCEPTION)
    directory = stopped(cfg, "a", 9)
    state = checkpoint.load(directory)
    assert state is not None
    state["model"]["classifier.weight"][3, 2] = value
    rewritten(directory, model=state["model"])
    assert run(cfg, "a").status == "diverged"
    record = record_of(directory)
    assert record["steps_done"] == 10
    assert record["reason"] == "loss or weights ceased to be finite at step 10"
    assert run(cfg, "a").status == "skipped"
    last = list(records.read_rows(directory / records.CURVES))[-1]
    assert last["step"] == 9


# --- security ----------------------------------------------------------------------------------------------------


class _Runs:
    """What a pickle can be made to do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("form", ["torch's", "a bare pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, form: str) -> None:
    cfg, sign = configuration(tmp_path, *SHORT), tmp_path / "it ran"
    directory = stopped(cfg, "a", 17)
    state = {"step": 17, "model": _Runs(sign)}
    if form == "torch's":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
    else:
        payload = pickle.dumps(state, protocol=2)
    (directory / checkpoint.CURRENT).write_bytes(payload + hashlib.sha256(payload).digest())  # its digest is right
    with pytest.raises(UserError, match="expected tensors and plain values; do not trust this directory"):
        run(cfg, "a")
    assert not sign.exists()
    pickle.loads(pickle.dumps(_Runs(sign)))
    assert sign.exists()  # read by anyone else, it does


def test_kept_weights_that_would_run_code_are_refused_and_run_none(tmp_path: Path) -> None:
    """Of a run that has ended: an ensemble reads them, and whoever wrote them may have signed them too."""
    sign, buffer = tmp_path / "it ran", io.BytesIO()
    torch.save({"model": _Runs(sign)}, buffer)
    signed = hashlib.sha256(buffer.getvalue())
    path = tmp_path / checkpoint.WEIGHTS
    path.write_bytes(buffer.getvalue() + signed.digest())
    with pytest.raises(UserError, match="expected tensors and plain values; do not trust this directory"):
        checkpoint.kept(path, signed.hexdigest())
    assert not sign.exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "builtins.open", "builtins.eval", "subprocess.Popen", "torch.nn.Linear", "Inception",
     "bn_replication.norms.os", "bn_replication.norms.Algorithm1", "bn_replication.models.mlp.nn", "..mlp.MLP", ""],
)  # fmt: skip
@pytest.mark.parametrize("group", ["model", "norm"])
def test_a_target_outside_the_list_is_refused_before_data(tmp_path: Path, group: str, target: str) -> None:
    cfg = configuration(tmp_path, *SHORT, f"{group}._target_='{target}'", f"data.root={tmp_path}/none", "data=mnist")
    with pytest.raises(UserError, match=rf"{group}\._target_: found '.*', expected (a class of|one of)"):
        run(cfg, "a")


def test_nothing_runs_from_a_results_directory(tmp_path: Path) -> None:
    """Modules, start-up files and configuration planted among the results are files like any other."""
    cfg, sign = configuration(tmp_path / "runs", *SHORT), tmp_path / "it ran"
    directory = stopped(cfg, "default", 17)
    code = f"open({str(sign)!r}, 'w').close()\n"
    for name in ("json.py", "torch.py", "sitecustomize.py", "conftest.py", "bn_replication.py", "x.pth"):
        for folder in (directory, tmp_path / "runs"):
            (folder / name).write_text(code)
    (directory / ".env").write_text("PYTHONSTARTUP=json.py\n")
    marker = json.loads((directory / STARTED).read_text())
    script = (
        "import sys; from pathlib import Path; from bn_replication import records, checkpoint, report, verify\n"
        "root = Path(sys.argv[1]); checkpoint.load(Path(sys.argv[2])); records.load_runs(root)\n"
        "verify.main(['--published', str(root)])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "runs"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert run(cfg, "default").status == "completed"
    assert marker == cfg.identity()
    assert not sign.exists()
