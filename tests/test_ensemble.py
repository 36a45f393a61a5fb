"""Figure 4 from the sweep's runs to judged rows: six real networks a seed, trained for a moment on shipped images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tests.conftest import Compose

from bn_replication import (
    build,
    checkpoint,
    claims,
    ensemble,
    evaluate,
    fig4,
    figures,
    publish,
    records,
    report,
    verify,
)
from bn_replication.data import load
from bn_replication.errors import UserError
from bn_replication.inputs import Inputs
from bn_replication.ledger import PAPER, digests_for_study, load_ledger, read_yaml
from bn_replication.norms import PerActivationBatchNorm, batch_norms, materialize
from bn_replication.runner import run
from bn_replication.status import axes
from bn_replication.train import CONFIGS, resolved, validate

STUDY, SEEDS, EXAMPLES = "fig4_ensemble", (0, 1), 20
MEMBERS = [f"member_{k}" for k in range(1, 7)]
EVALUATIONS = {"single_crop": (1, 1), "multicrop": (36, 1), "ensemble_single_crop": (1, 6), "ensemble": (36, 6)}
QUICK = ("steps=2", "evaluate.times=1", "probe.enabled=false", f"evaluate.keep.examples={EXAMPLES}")
QUICK += ("evaluate.keep.short_sides=[288]", "evaluate.keep.statistics_batches=2", "evaluate.examples=20")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with the six networks of two seeds, not yet evaluated."""
    root = tmp_path_factory.mktemp("fig4")
    for variant in MEMBERS:
        words = ["scale=smoke", "wandb=disabled", f"machine.results={root}", f"experiment={STUDY}", *QUICK]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = validate(resolved(compose("train", overrides=[*words, f"variant={variant}"])))
        for seed in SEEDS:
            assert run(cfg.model_copy(update={"seed": seed}), f"variant={variant}").status == "completed"
    return root


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with those networks and their evaluations."""
    root = tmp_path_factory.mktemp("evaluated") / "runs"
    shutil.copytree(trained, root)
    assert command(root) == 0
    return root


@pytest.fixture
def mine(evaluated: Path, tmp_path: Path) -> Path:
    """Return a copy of it all to spoil."""
    return Path(shutil.copytree(evaluated, tmp_path / "mine"))


def command(root: Path, *words: str) -> int:
    return ensemble.main(ensemble.parse(["--root", str(root), "--scale", "smoke", "--jobs", "1", *words]))


def place_of(root: Path, arm: str, seed: int = 0) -> Path:
    return root / "smoke" / STUDY / arm / f"seed={seed}"


def record_of(root: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    record = records.read_run_json(place_of(root, arm, seed))
    assert record is not None
    return record


def error_of(root: Path, evaluation: str, seed: int = 0) -> float:
    return record_of(root, f"evaluation={evaluation}", seed)["summary"]["top1_error"]


def at_laptop(root: Path, to: Path) -> Path:
    """Return a copy of ``root`` whose records call themselves those of the laptop scale, as smoke is never judged."""
    shutil.copytree(root / "smoke", to / "laptop")
    for path in to.rglob(records.RUN):
        record = json.loads(path.read_text())
        record["scale"] = "laptop"
        path.write_text(json.dumps(record))
    return to


# --- what is trained ----------------------------------------------------------------------------------------


def test_six_members_each_a_mix_of_the_papers_three_means(composed: Compose) -> None:
    assert axes(STUDY, "laptop")["variant"] == MEMBERS
    mixes = []
    for variant in MEMBERS:
        cfg, _ = composed(f"experiment={STUDY}", f"variant={variant}", "scale=laptop")
        model = cfg.model.arguments
        mixes.append((model["init_scale"] > 1, model["dropout"], cfg.last_norm is not None))
        assert cfg.optimizer.multiple == 30
        assert (cfg.last_norm is None) or cfg.last_norm.name == "per_activation"
    assert len(set(mixes)) == 6
    assert (False, 0, False) not in mixes
    assert {dropout for _, dropout, _ in mixes} == {0, 0.05, 0.1}


def test_the_last_norm_is_that_of_the_last_hidden_layers_alone(composed: Compose) -> None:
    cfg, _ = composed(f"experiment={STUDY}", "variant=member_4")
    assert cfg.last_norm is not None
    construct = build.model(cfg.model, build.norm(cfg.norm), build.norm(cfg.last_norm))
    model = construct((3, 32, 32), 10, torch.Generator().manual_seed(0))
    materialize(model, Inputs(cfg, load("cifar10_sample")).held_out(0, 2)[0])
    layers = batch_norms(model)
    last = {name for name, layer in layers.items() if isinstance(layer, PerActivationBatchNorm)}
    assert last == {name for name in layers if name.startswith("inception5b.")}
    assert layers["inception5b.conv3x3.norm"].num_features == 4 * layers["inception5a.conv3x3.norm"].num_features
    mlp, _ = composed("setting=mnist")
    with pytest.raises(UserError, match="found last_norm with MLP, expected model=inception"):
        build.model(mlp.model, build.norm(mlp.norm), build.norm(cfg.last_norm))


def test_a_last_norm_given_on_the_command_line_names_its_arm(composed: Compose) -> None:
    cfg, arm = composed("setting=inception", "norm@last_norm=per_activation")
    assert cfg.last_norm is not None
    assert "norm@last_norm=per_activation" in arm


@pytest.mark.slow
def test_keeping_weights_changes_no_bit_of_a_run_and_stays_out_of_what_is_published(
    trained: Path, composed: Compose
) -> None:
    cfg, _ = composed(f"experiment={STUDY}", "variant=member_1", *QUICK)
    without = cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"keep": None})})
    assert "keep" not in without.identity()["evaluate"]
    assert "last_norm" not in without.identity()
    run(without, "variant=member_1")
    there = record_of(trained, "variant=member_1")
    here = records.read_run_json(cfg.machine.results / "smoke" / STUDY / "variant=member_1" / "seed=0")
    assert here is not None
    assert here["weights"] == there["weights"]
    assert here["summary"] == there["summary"]
    assert "kept" not in here
    assert not list(cfg.machine.results.rglob("*.pt"))
    assert list(there["kept"]) == [checkpoint.WEIGHTS]
    assert checkpoint.WEIGHTS not in there["files"]


# --- what is evaluated --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_seed_has_its_four_evaluations_of_the_same_images(evaluated: Path) -> None:
    assert len(records.run_directories(evaluated, STUDY)) == len(SEEDS) * (len(MEMBERS) + len(EVALUATIONS))
    for seed in SEEDS:
        kept = {v: record_of(evaluated, f"variant={v}", seed)["kept"][checkpoint.WEIGHTS] for v in MEMBERS}
        for evaluation, (crops, models) in EVALUATIONS.items():
            arm = f"evaluation={evaluation}"
            record = record_of(evaluated, arm, seed)
            config = record["config"]
            assert (config["crops"], config["models"], config["examples"]) == (crops, models, EXAMPLES)
            assert config["members"] == kept
            assert record["choices"]["evaluation"] == evaluation
            assert record["rules"] == digests_for_study(STUDY)
            rows = list(records.read_rows(place_of(evaluated, arm, seed) / ensemble.MEMBERS))
            assert len(rows) == 6
            for key in ("top1_error", "top5_error"):
                shares = [row[key] * EXAMPLES for row in rows]
                assert shares == pytest.approx([round(share) for share in shares])  # whole images of so many
                value = sum(row[key] for row in rows) / 6 if models == 1 else rows[-1][key]
                assert record["summary"][key] == pytest.approx(value, abs=1e-12)


@pytest.mark.slow
def test_a_networks_errors_are_those_of_its_own_weights_under_algorithm_2(evaluated: Path) -> None:
    """Read back, rebuilt and evaluated the long way round."""
    place = ensemble.Place("cpu", Path("data"), None)
    record = record_of(evaluated, "variant=member_6")
    cfg = ensemble.configuration(record, place)
    assert cfg.identity() == record["config"]
    split = load(cfg.data.name)
    inputs = Inputs(cfg, split)
    weights = checkpoint.kept(place_of(evaluated, "variant=member_6") / checkpoint.WEIGHTS)
    model = ensemble.network(cfg, split, inputs, weights)
    accuracy = evaluate.one_crop(model, inputs.held_out, EXAMPLES, 7)["accuracy"]
    (row,) = [
        row
        for row in records.read_rows(place_of(evaluated, "evaluation=single_crop") / ensemble.MEMBERS)
        if row["variant"] == "member_6"
    ]
    assert row["top1_error"] == pytest.approx(1 - accuracy, abs=1e-12)
    # Other statistics than the running ones, which are what the run itself was evaluated under.
    mean = "inception5b.conv3x3.norm.running_mean"
    assert (model.state_dict()[mean] - weights[mean]).abs().max() > 1e-3


def members_of(root: Path) -> list[ensemble.Member]:
    place = ensemble.Place("cpu", Path("data"), None)
    return [ensemble.measure(place_of(root, f"variant={variant}"), place) for variant in MEMBERS]


@pytest.mark.slow
def test_an_ensemble_of_one_network_six_times_is_that_network(evaluated: Path) -> None:
    labels = load("cifar10_sample").held_out.labels[:EXAMPLES]
    member = members_of(evaluated)[2]
    found = dict(ensemble.rows([member] * 6, labels, 36))
    assert {name: (row.crops, row.models) for name, row in found.items()} == EVALUATIONS
    assert found["ensemble"].summary == pytest.approx(found["multicrop"].summary)
    assert found["ensemble_single_crop"].summary == pytest.approx(found["single_crop"].summary)


@pytest.mark.slow
def test_a_diverged_network_stays_in_and_knows_nothing(mine: Path) -> None:
    directory = place_of(mine, "variant=member_2")
    record = json.loads((directory / records.RUN).read_text())
    del record["kept"]
    (directory / records.RUN).write_text(json.dumps(record | {"status": "diverged"}))
    for evaluation in EVALUATIONS:
        shutil.rmtree(place_of(mine, f"evaluation={evaluation}"))
    assert command(mine) == 0
    members = members_of(mine)
    labels = load("cifar10_sample").held_out.labels[:EXAMPLES]
    five = evaluate.together([m.probabilities["many"] for m in members if m.variant != "member_2"])
    assert error_of(mine, "ensemble") == evaluate.errors(five, labels)["top1_error"]
    rows = records.read_rows(place_of(mine, "evaluation=single_crop") / ensemble.MEMBERS)
    (own,) = [row["top1_error"] for row in rows if row["variant"] == "member_2"]
    assert own == pytest.approx((labels != 0).double().mean().item())  # the first class, whatever it sees
    assert record_of(mine, "evaluation=ensemble")["summary"]["diverged_members"] == 1


# --- done once, and refused where it cannot be right ----------------------------------------------------------


@pytest.mark.slow
def test_what_is_done_is_not_done_again(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The weights are no longer needed once their probabilities are there.
    for path in mine.rglob(checkpoint.WEIGHTS):
        path.unlink()
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert command(mine) == 0
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().out.count("complete already") == len(EVALUATIONS) * len(SEEDS)


@pytest.mark.slow
def test_altered_weights_are_refused_in_one_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = place_of(mine, "variant=member_3")
    (directory / ensemble.PROBABILITIES).unlink()
    content = bytearray((directory / checkpoint.WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / checkpoint.WEIGHTS).write_bytes(content)
    assert command(mine) == 2
    error = capsys.readouterr().err
    assert "found another content than was written" in error
    assert error.count("\n") == 1
    (directory / checkpoint.WEIGHTS).unlink()
    assert command(mine) == 2
    assert "weights.pt, expected what the run kept" in capsys.readouterr().err


@pytest.mark.slow
def test_a_record_of_other_networks_is_not_written_over(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place_of(mine, "evaluation=multicrop") / records.RUN
    record = json.loads(path.read_text())
    record["config"]["members"]["member_1"] = "another"
    path.write_text(json.dumps(record))
    before = path.read_bytes()
    assert command(mine) == 2
    assert "found a record of other networks" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_seed_waits_for_its_sixth_network(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place_of(mine, "variant=member_5", 1))
    assert command(mine) == 0
    assert "seed 1: not yet there: member_5" in capsys.readouterr().out
    shutil.rmtree(place_of(mine, "variant=member_5", 0))
    assert command(mine) == 2
    assert "found no six networks of one seed" in capsys.readouterr().err


# --- records -> verdicts, table, pages ------------------------------------------------------------------------


def test_it_takes_from_the_words_that_training_was_given_what_says_where() -> None:
    words = ["model.dropout=0.1", "machine.device=cuda:1", "machine.results=/a", "data.root=/b", "data.source=/c"]
    options = ensemble.parse(["--scale", "gpu", *words])
    assert (options.device, options.root, options.data, options.source) == (
        "cuda:1",
        Path("/a"),
        Path("/b"),
        Path("/c"),
    )
    assert ensemble.parse(["machine.jobs=3", "--root", "/d"]).jobs == 3
    assert ensemble.parse([]).source is None
    with pytest.raises(SystemExit):
        ensemble.parse(["cuda"])


@pytest.mark.slow
def test_the_claims_are_judged_on_the_evaluations_and_wait_for_them(
    trained: Path, evaluated: Path, tmp_path: Path
) -> None:
    ledger = {name: entry for name, entry in load_ledger().items() if entry.study == STUDY}
    assert set(ledger) == {"multicrop", "ensemble"}
    waiting = claims.judge(ledger, records.load_runs(at_laptop(trained, tmp_path / "waiting")))
    assert [verdict.verdict for verdict in waiting] == ["not run"] * 2
    found = claims.judge(ledger, records.load_runs(at_laptop(evaluated, tmp_path / "judged")))
    for verdict, before, after in zip(found, ("single_crop", "multicrop"), ("multicrop", "ensemble"), strict=True):
        gains = [error_of(evaluated, after, seed) - error_of(evaluated, before, seed) for seed in SEEDS]
        assert (verdict.scale, verdict.n, verdict.steps) == ("laptop", len(SEEDS), 2)
        assert verdict.estimate == pytest.approx(sum(gains) / len(gains), abs=1e-12)
        assert verdict.low <= verdict.estimate <= verdict.high


@pytest.mark.slow
def test_the_table_says_what_the_records_say(evaluated: Path) -> None:
    paper = read_yaml(PAPER)["fig4"]
    first, gains = fig4.tables(records.load_runs(evaluated, STUDY), paper)
    rows = {row["model"]: row for row in first["rows"]}
    assert rows["BN-Inception single crop"]["top-1, paper"] == "25.2%"
    assert rows["BN-Inception multicrop"]["top-5, paper"] == "5.82%"
    assert rows["GoogLeNet ensemble"]["top-1, ours"] == "—"
    errors = [error_of(evaluated, "ensemble", seed) for seed in SEEDS]
    ours = rows["BN-Inception ensemble"]["top-1, ours"]
    assert ours.startswith(f"{100 * sum(errors) / 2:.1f}%")
    assert (rows["BN-Inception ensemble"]["crops"], rows["BN-Inception ensemble"]["networks"]) == ("36", "6")
    assert [row["paper"] for row in gains["rows"]] == ["−3.21 points", "−1.89 points"]
    # An evaluation that is gone leaves a dash, or its seed out of the pairs, and no error.
    frame = records.load_runs(evaluated, STUDY)
    gone = frame["choice.evaluation"] == "multicrop"
    for lacking, gain, count in ((frame[~gone], "—", "2"), (frame[~gone | (frame["seed"] == 0)], "points", "1 to 2")):
        table, differences = fig4.tables(lacking, paper)
        assert all(row["ours"].endswith(gain) and "nan" not in row["ours"] for row in differences["rows"])
        assert f"means of {count} seed(s)" in table["caption"]
    text = fig4.text(evaluated, STUDY, "smoke", paper)
    assert f"{EXAMPLES} held-out images" in text
    assert ours in text


@pytest.mark.slow
def test_members_and_evaluations_are_published_verified_and_reported(evaluated: Path, tmp_path: Path) -> None:
    runs, published, readme = at_laptop(evaluated, tmp_path / "runs"), tmp_path / "published", tmp_path / "README.md"
    readme.write_text("<!-- scoreboard -->\n<!-- /scoreboard -->\n")
    places = ["--from", str(runs), "--to", str(published), "--readme", str(readme)]
    assert publish.main([STUDY, *places]) == 0
    assert not list(published.rglob("*.pt"))
    assert all(
        sum(file.stat().st_size for file in directory.iterdir()) < publish.LIMIT
        for directory in records.run_directories(published)
    )
    assert verify.main(["--published", str(published), "--readme", str(readme)]) == 0
    rows = list(published.rglob(ensemble.MEMBERS + records.PACKED))
    assert len(rows) == len(EVALUATIONS) * len(SEEDS)
    rows[0].write_bytes(b"")
    assert verify.main(["--published", str(published), "--readme", str(readme)]) == 1
    page = report.page([runs])
    assert "BN-Inception multicrop" in page
    frame = records.load_runs(runs, STUDY)
    assert figures.swept(figures.trained(frame)) is None  # the mixes are no axis
    assert {look.label for look in figures.looks(figures.trained(frame)).values()} == {
        f"member {k}" for k in range(1, 7)
    }


def test_a_path_may_hold_what_means_something_to_hydra(tmp_path: Path) -> None:
    place = ensemble.Place("cpu", tmp_path / "o'brien {x}, y=1", None)
    assert ensemble._here("smoke", place)["data"] == {"root": str(place.data), "source": None}
