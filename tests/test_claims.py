"""The ledger is whole and strict, and the judge does with runs what the ledger says."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from bn_replication import claims, metrics, records, stats
from bn_replication.claims import Verdict, judge
from bn_replication.errors import UserError
from bn_replication.ledger import (
    AMBIGUITIES,
    LEDGER,
    PAPER,
    Entry,
    digests_for_study,
    entry_digest,
    load_ledger,
    read_yaml,
)
from bn_replication.scoreboard import measured, ours, papers, scoreboard_markdown, verdicts_csv
from synthetic import climb, write

# Every claim of the paper that is to be judged, in the paper's order.
CLAIMS = [
    "alg1-forward",
    "alg1-backward",
    "alg2-inference",
    "identity",
    "conv-statistics",
    "bias-redundant",
    "scale-invariance",
    "detached-statistics",
    "fig1-faster",
    "fig1-higher",
    "fig1-stable",
    "bn-alone",
    "bn-alone-not-worse",
    "bn-x5-speed",
    "bn-x30-speed",
    "x30-slower-start",
    "x30-higher-end",
    "plain-x5-diverges",
    "plain-sigmoid-chance",
    "bn-sigmoid-trains",
    "rate-range",
    "init-scale",
    "dropout",
    "l2",
    "lrn",
    "lrn-felt",
    "lrn-plain",
    "decay-speed",
    "shuffling",
    "photometric",
    "regulariser",
    "regulariser-shuffled",
    "jacobian",
    "population-vs-moving",
    "placement",
    "affine",
    "input-whitening",
    "whitening-cost",
    "multicrop",
    "ensemble",
    "parameter-count",
    "compute",
]
RULE: dict[str, Any] = {
    "where": "Section 9",
    "says": "It is faster.",
    "why": "By hand.",
    "kind": "empirical",
    "study": "study",
    "metric": "steps_to",
    "control": {"norm": "none"},
    "treatment": {"norm": "batch"},
    "effect": "ratio",
    "bounds": {"below": 1.0},
}


def entry(name: str = "faster", **changes: Any) -> Entry:
    rule = {**RULE, **changes}
    if isinstance(rule["metric"], str):
        rule["metric"] = {"name": rule["metric"]}
    return Entry.model_validate({**rule, "id": name})


def verdict_of(root: Path, *entries: Entry) -> Verdict:
    """Return the verdict on the first of ``entries``, judged together on the runs below ``root``."""
    return judge({e.id: e for e in entries}, records.load_runs(root))[0]


# --- the ledger --------------------------------------------------------------------------------------------


def test_the_ledger_holds_every_claim_of_the_paper_and_refers_to_numbers_that_exist() -> None:
    ledger, paper = load_ledger(), read_yaml(PAPER)
    assert not set(CLAIMS) - set(ledger)
    assert all(papers(e, paper) for e in ledger.values() if e.paper)
    assert papers(ledger["bn-alone"], paper) == "2.33x fewer"
    assert papers(ledger["x30-slower-start"], paper) == "1.29x more"


def test_the_second_data_set_is_judged_by_the_rules_of_the_first() -> None:
    """Same metric, arms, effect and bounds; another study, whose runs are on other data."""
    ledger = load_ledger()
    again = {name: re.search(r"\(([a-z0-9-]+)(,| on) ", e.says) for name, e in ledger.items() if "fashion" in e.study}
    assert len(again) == 6
    for name, named in again.items():
        assert named, name
        here, there = ledger[name], ledger[named[1]]
        assert here.study != there.study
        for part in ("metric", "control", "treatment", "effect", "kind"):
            assert getattr(here, part) == getattr(there, part), (name, part)
        assert here.bounds_at("laptop") == there.bounds_at("laptop"), name


def test_every_open_value_is_the_one_in_the_configuration() -> None:
    ledger = load_ledger()
    for name, item in read_yaml(AMBIGUITIES).items():
        assert {"what", "where", "chosen", "why", "moves"} <= set(item), name
        assert set(item["moves"]) <= set(ledger), name
        if "file" in item:
            tree: Any = yaml.safe_load((LEDGER.parents[1] / "configs" / item["file"]).read_text())
            for key in item["key"].split("."):
                tree = tree[key]
            assert tree == item["value"], name


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            lambda rule: rule.update(contol=rule.pop("control")),
            "unknown key 'contol'; did you mean 'control'?",
        ),
        (lambda rule: rule.update(metric={"name": "step_to"}), "did you mean 'steps_to'?"),
        (lambda rule: rule.update(metric={"name": "best", "off": "x"}), "did you mean 'of'?"),
        (lambda rule: rule.update(bounds={"bellow": 1}), "did you mean 'below'?"),
        (
            lambda rule: rule.update(bounds={"laptpo": {"below": 1}, "gpu": {"below": 1}}),
            "did you mean 'laptop'?",
        ),
        (lambda rule: rule.update(bounds={"above": 2, "below": 1}), "above < below"),
        (lambda rule: rule.update(bounds={"below": -1}), "above 0"),
        (lambda rule: rule.update(bounds={"above": 0.0}), "above 0"),  # a ratio is always above 0: no test
        (lambda rule: rule.update(bounds={"below": 0}), "above 0"),
        (lambda rule: rule.pop("why"), "found no 'why'"),
        (lambda rule: rule.pop("control"), "a control"),
        (lambda rule: rule.update(kind="exact"), "effect: value for exact claims"),
    ],
)
def test_a_mistake_in_the_ledger_is_refused_in_one_line(
    tmp_path: Path, wrong: Callable[[dict[str, Any]], Any], line: str
) -> None:
    rule = {**RULE, "metric": {"name": "steps_to"}}
    wrong(rule)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"faster": rule}))
    with pytest.raises(UserError) as caught:
        load_ledger(path)
    assert line in str(caught.value)
    assert "'faster'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_study_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"faster": {**RULE, "metric": {"name": "steps_to"}, "study": "fig1_mnits"}}))
    assert load_ledger(path)["faster"].study == "fig1_mnits"  # a ledger elsewhere may judge studies that are elsewhere
    monkeypatch.setattr("bn_replication.ledger.LEDGER", path)
    with pytest.raises(UserError, match=r"found study 'fig1_mnits', .* did you mean 'fig1_mnist'\?"):
        load_ledger(path)


def test_a_claim_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("faster: {study: a}\nfaster: {study: b}\n")
    with pytest.raises(UserError, match="found 'faster' twice"):
        load_ledger(path)


def test_the_digest_covers_the_rule_and_not_the_prose() -> None:
    digest = entry_digest(entry())
    same = [
        entry(says="Otherwise."),
        entry(why="So."),
        entry(metric={"name": "steps_to", "of": "test_accuracy"}),
        entry(bounds={"default": {"below": 1}}),
        entry(control={"norm": ["none"]}),
        entry(amendments=[{"replaces": "none", "on": "2026-01-01", "why": "x"}]),
    ]
    assert {entry_digest(e) for e in same} == {digest}
    other = [
        entry("slower"),
        entry(bounds={"below": 0.9}),
        entry(bounds={"above": 1.0}),
        entry(control={"norm": "layer"}),
        entry(treatment={"norm": "reference"}),
        entry(study="another"),
        entry(metric={"name": "steps_to", "of": "train_accuracy"}),
        entry(metric="best"),
        entry(effect="difference"),
        entry(bounds={"default": {"below": 1}, "gpu": {"below": 0.5}}),
    ]
    assert len({entry_digest(e) for e in other} | {digest}) == len(other) + 1


def test_a_run_stores_the_rules_of_its_study_without_waiting_for_scipy() -> None:
    assert set(digests_for_study("fig1_mnist")) == {"fig1-faster", "fig1-higher", "fig1-stable"}
    assert digests_for_study("fig1_rate") == {}
    code = "import sys, bn_replication.ledger; assert not {'torch', 'scipy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180)


# --- the judge ---------------------------------------------------------------------------------------------

# Each control reaches its own best, 0.5, at step 800; the treatment reaches 0.5 at 0.4 / 0.8 of its climb to 0.9.
FASTER = {0: 390, 1: 400, 2: 410, 3: 405, 4: 395}


def paired_runs(root: Path, seeds: int = 5, study: str = "study", **options: Any) -> None:
    for seed in range(seeds):
        write(root, study, "norm=none", seed, climb(0.5, 800), **options)
        write(root, study, "norm=batch", seed, climb(0.9, 2 * FASTER[seed]), **options)


def test_steps_are_compared_at_the_controls_own_best_seed_by_seed(tmp_path: Path) -> None:
    paired_runs(tmp_path)
    verdict = verdict_of(tmp_path, entry())
    assert (verdict.verdict, verdict.n, verdict.censored, verdict.steps) == ("reproduced", 5, 0, 1000)
    assert verdict.control == "800 800 800 800 800"
    # Evaluations every 100 steps round the corners of the curves a little.
    assert verdict.estimate == pytest.approx(0.5, rel=0.02)
    assert verdict.low < verdict.estimate < verdict.high < 1
    assert ours(entry(), verdict).startswith("2x fewer steps [1.9")


def test_the_bar_is_the_ledgers_and_can_differ_by_scale(tmp_path: Path) -> None:
    paired_runs(tmp_path)
    paired_runs(tmp_path, scale="gpu")
    strict = entry(bounds={"default": {"below": 1}, "gpu": {"below": 0.4}})
    laptop, gpu = judge({"faster": strict}, records.load_runs(tmp_path))
    assert (laptop.scale, laptop.verdict, gpu.scale, gpu.verdict) == (
        "laptop",
        "reproduced",
        "gpu",
        "contradicted",
    )


def test_pairs_are_pairs(tmp_path: Path) -> None:
    """Seeds differ far more than arms do: pairing takes that away, and nothing else would."""
    for seed, level in enumerate([0.2, 0.4, 0.6, 0.8]):
        write(tmp_path, "study", "norm=none", seed, climb(level, 500))
        # Written in another order than the control's, so that rows cannot be paired by their place.
        write(
            tmp_path,
            "study",
            "norm=batch",
            3 - seed,
            climb([0.8, 0.6, 0.4, 0.2][seed] + 0.01 + 0.0001 * seed, 500),
        )
    higher = entry(metric="best", effect="difference", bounds={"above": 0})
    assert verdict_of(tmp_path, higher).verdict == "reproduced"
    shifted = records.load_runs(tmp_path)
    batch = shifted["choice.norm"] == "batch"
    shifted.loc[batch, "seed"] = (shifted.loc[batch, "seed"] + 1) % 4
    assert judge({higher.id: higher}, shifted)[0].verdict == "inconclusive"


def test_a_seed_without_its_partner_is_left_out_and_said(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    write(tmp_path, "study", "norm=none", 7, climb(0.5, 800))
    verdict = verdict_of(tmp_path, entry())
    assert verdict.n == 3
    assert "seed 7 left out" in verdict.note


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    paired_runs(tmp_path, 1)
    verdict = verdict_of(tmp_path, entry())
    assert (verdict.verdict, verdict.n, verdict.estimate) == ("inconclusive", 1, pytest.approx(0.5, rel=0.05))


def test_a_run_that_never_reaches_the_target_is_censored_kept_and_counted(tmp_path: Path) -> None:
    paired_runs(tmp_path, 4)
    write(tmp_path, "study", "norm=none", 4, climb(0.5, 800))
    write(tmp_path, "study", "norm=batch", 4, climb(0.4, 300))
    verdict = verdict_of(tmp_path, entry())
    assert (verdict.verdict, verdict.n, verdict.censored) == ("inconclusive", 5, 1)
    assert verdict.treatment.endswith(">1000")
    assert verdict.high == float("inf")


def test_a_treatment_that_never_gets_there_is_slower(tmp_path: Path) -> None:
    for seed in range(6):
        write(tmp_path, "study", "norm=none", seed, climb(0.5, 300 + 10 * seed))
        write(tmp_path, "study", "norm=batch", seed, climb(0.4, 300))
    verdict = verdict_of(tmp_path, entry())
    assert (verdict.verdict, verdict.censored) == ("contradicted", 6)


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    for seed in range(5):
        write(tmp_path, "study", "norm=none", seed, climb(0.5 + seed / 100, 800))
        # Ahead when it blew up: its best counts, its end is chance, a target above its best is out of reach.
        write(tmp_path, "study", "norm=batch", seed, climb(0.9, 1000)[:6], status="diverged")
    best = entry("best", metric="best", effect="difference", bounds={"below": 0.0})
    final = entry("final", metric={"name": "final", "chance": 0.1}, effect="difference", bounds={"above": 0})
    faster = entry("faster", bounds={"below": 1})
    verdicts = {v.claim: v for v in judge({e.id: e for e in (best, final, faster)}, records.load_runs(tmp_path))}
    assert all(v.n == v.diverged == 5 for v in verdicts.values())
    assert verdicts["best"].estimate == pytest.approx(0.5 - 0.52)
    assert verdicts["final"].estimate == pytest.approx(0.1 - 0.52)
    assert verdicts["final"].verdict == "contradicted"
    assert verdicts["faster"].treatment == "1000 >1000 >1000 >1000 >1000".replace("1000", "500", 1)


def test_diverged_runs_are_counted_in_both_arms(tmp_path: Path) -> None:
    for seed in range(4):
        write(tmp_path, "study", "norm=none", seed, climb(0.5, 800), status="diverged" if seed < 2 else "completed")
        write(tmp_path, "study", "norm=batch", seed, climb(0.9, 800), status="diverged" if seed < 1 else "completed")
    assert verdict_of(tmp_path, entry()).diverged == 3


def test_a_failed_run_is_no_result_and_is_said(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    write(tmp_path, "study", "norm=none", 3, climb(0.5, 800))
    write(tmp_path, "study", "norm=batch", 3, climb(0.1, 800), status="failed")
    verdict = verdict_of(tmp_path, entry())
    assert verdict.n == 3
    assert "1 failed run(s) of the treatment left out" in verdict.note


def test_budgets_are_not_mixed(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    for seed, steps in ((3, 2000), (4, 2000), (5, 4000)):
        write(tmp_path, "study", "norm=none", seed, climb(0.5, 1600, steps), steps=steps)
        write(tmp_path, "study", "norm=batch", seed, climb(0.9, 1600, steps), steps=steps)
    verdict = verdict_of(tmp_path, entry())
    # 4,000 steps have one pair, 2,000 have two: the largest that can have an interval.
    assert (verdict.steps, verdict.n) == (2000, 2)
    assert "judged at 2000 steps; runs of 4000, 1000 steps are not mixed in" in verdict.note


def test_two_runs_for_one_place_are_not_chosen_between(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    write(tmp_path, "study", "norm=batch,model.dropout=0.3", 1, climb(0.9, 100), choices={"norm": "batch"})
    verdict = verdict_of(tmp_path, entry())
    assert (verdict.verdict, verdict.n) == ("inconclusive", 0)
    assert "the treatment fits 2 runs of seed 1" in verdict.note


def test_arms_are_selected_by_choice_or_configuration(tmp_path: Path) -> None:
    for seed in range(3):
        for dropout, lrn in ((0.0, False), (0.4, True)):
            config = {"model": {"dropout": dropout, "lrn": lrn}}
            write(tmp_path, "study", f"d={dropout}", seed, climb(0.5 + dropout, 500), config=config, choices={})
    for arms in ({"model.dropout": 0}, {"model.dropout": 0.4}), ({"model.lrn": False}, {"model.lrn": True}):
        less = entry(metric="best", effect="difference", control=arms[0], treatment=arms[1], bounds={"above": 0})
        assert verdict_of(tmp_path, less).estimate == pytest.approx(0.4)
    # A number is not a truth value: lrn=1 fits nothing.
    odd = entry(metric="best", effect="difference", control={"model.lrn": 1}, treatment={"model.lrn": True})
    assert verdict_of(tmp_path, odd).verdict == "not run"


def test_a_misspelt_key_is_refused_and_a_missing_arm_is_said(tmp_path: Path) -> None:
    paired_runs(tmp_path, 2)
    with pytest.raises(UserError, match="did you mean 'norm'"):
        verdict_of(tmp_path, entry(control={"nrom": "none"}))
    with pytest.raises(UserError, match="did you mean 'test_accuracy'"):
        verdict_of(tmp_path, entry(metric={"name": "best", "of": "test_acuracy"}, effect="difference"))
    verdict = verdict_of(tmp_path, entry(control={"norm": "layer"}))
    assert verdict.verdict == "not run"
    assert "no run fits the control, norm=layer" in verdict.note


def test_smoke_is_no_evidence_but_for_identities(tmp_path: Path) -> None:
    paired_runs(tmp_path, scale="smoke")
    write(tmp_path, "exact", "identity", 0, scale="smoke", summary={"error": 1e-15})
    assert verdict_of(tmp_path, entry()) == Verdict("faster", "", "not run")
    assert verdict_of(tmp_path, load_ledger()["identity"]).verdict == "reproduced"


def test_an_identity_must_hold_in_every_run(tmp_path: Path) -> None:
    identity = load_ledger()["identity"]
    for seed, error in enumerate([1e-15, 2e-15]):
        write(tmp_path, "exact", "identity", seed, summary={"error": error})
    verdict = verdict_of(tmp_path, identity)
    assert (verdict.verdict, verdict.n, ours(identity, verdict)) == ("reproduced", 2, "2e−15")
    write(tmp_path, "exact", "identity", 2, summary={"error": 1e-3})
    assert verdict_of(tmp_path, identity).verdict == "contradicted"
    write(tmp_path / "b", "exact", "identity", 0, summary={"error": float("nan")})
    assert verdict_of(tmp_path / "b", identity).verdict == "contradicted"


def test_drift_is_read_from_the_last_layers_units(tmp_path: Path) -> None:
    stable = entry(metric="drift", effect="ratio", bounds={"below": 1})
    for seed in range(4):
        for norm, travel in (("none", 4.0 + seed / 10), ("batch", 1.0)):
            units = [[[p + travel * t] * 2 for p in (-1, 0, 1)] for t in (0, 0.5, 1)]
            write(tmp_path, "study", f"norm={norm}", seed, climb(0.5, 800), units=units)
    verdict = verdict_of(tmp_path, stable)
    assert verdict.control == "4 4.1 4.2 4.3"
    assert verdict.verdict == "reproduced"
    assert "x less drift" in ours(stable, verdict)


def test_failing_is_a_share_of_seeds_by_the_exact_binomial(tmp_path: Path) -> None:
    rule = load_ledger()["plain-x5-diverges"]
    for seed in range(9):
        for variant in ("bn_x5", "bn_x30"):
            write(tmp_path, "fig2_inception", f"variant={variant}", seed, climb(0.5, 500))
        options = {"status": "diverged"} if seed % 2 else {}
        write(tmp_path, "fig2_inception", "variant=inception_x5", seed, [0.1, 0.1], **options)
        verdict = verdict_of(tmp_path, rule)
        assert verdict.n == seed + 1
        # Alone in its family the claim is held against 5%: 2 / 2**6 is the first below.
        assert verdict.verdict == ("reproduced" if seed >= 5 else "inconclusive")
        assert verdict.needs == (None if seed >= 5 else 6)
    assert verdict.low == pytest.approx(stats.share_interval(9, 9, 0.05).low)
    assert ours(rule, verdict) == "9 of 9 seeds [66%, 100%]"


def test_a_seed_in_which_a_control_fails_too_does_not_bear_the_claim_out(tmp_path: Path) -> None:
    for seed in range(6):
        write(tmp_path, "fig2_inception", "variant=bn_x5", seed, climb(0.5, 500))
        write(tmp_path, "fig2_inception", "variant=bn_x30", seed, [0.1] * 11 if seed == 2 else climb(0.5, 500))
        write(tmp_path, "fig2_inception", "variant=inception_x5", seed, [0.1], status="diverged")
    verdict = verdict_of(tmp_path, load_ledger()["plain-x5-diverges"])
    assert (verdict.verdict, verdict.estimate) == ("inconclusive", pytest.approx(5 / 6))


def test_chance_knows_how_many_images_were_asked(tmp_path: Path) -> None:
    rule = load_ledger()["plain-sigmoid-chance"]
    for root, examples in (("all", 0), ("few", 500), ("more", 1_000_000)):
        for seed in range(6):
            config = {"evaluate": {"examples": examples}}
            write(
                tmp_path / root,
                "fig2_inception",
                "variant=inception_sigmoid",
                seed,
                [0.1, 0.105 if root == "more" else 0.12],
                config=config,
            )
    assert verdict_of(tmp_path / "all", rule).verdict == "contradicted"  # 12% of 10,000 is no guess
    assert verdict_of(tmp_path / "few", rule).verdict == "reproduced"  # 60 of 500 may well be
    # Asked of more than there are, a run is evaluated on all 10,000, of which 10.5% may be guessed; of a million never.
    assert verdict_of(tmp_path / "more", rule).verdict == "reproduced"
    assert not metrics.at_chance([0, 100], [0.1, 0.105], 0.1, 1_000_000)


def rates(root: Path, norm: str, seed: int, accuracies: dict[float, float]) -> None:
    for rate, accuracy in accuracies.items():
        config = {"optimizer": {"rate": rate, "multiple": 1.0}}
        options = {"status": "diverged"} if accuracy == 0 else {}
        arm = f"norm={norm},optimizer.rate={rate}"
        write(
            root,
            "rate_range",
            arm,
            seed,
            [0.1, accuracy or 0.9],
            choices={"norm": norm},
            config=config,
            **options,
        )


def test_rate_range_measures_a_whole_grid(tmp_path: Path) -> None:
    rule = load_ledger()["rate-range"]
    for seed in range(4):
        wobble = seed / 100
        rates(tmp_path, "none", seed, {0.001: 0.1, 0.01: 0.5, 0.1: 0.3 + wobble, 1.0: 0.0, 10.0: 0.0})
        rates(tmp_path, "batch", seed, {0.001: 0.1, 0.01: 0.5, 0.1: 0.5, 1.0: 0.5, 10.0: 0.2 + 2 * wobble})
    verdict = verdict_of(tmp_path, rule)
    # Both rise from 0.001 alike, a fifth of a decade; the plain net stays above 0.42 for 0.4 of the next one.
    assert verdict.control.split()[0] == f"{0.2 + 0.4:.5g}"
    assert verdict.treatment.split()[0] == f"{0.2 + 2 + 0.08 / 0.3:.5g}"
    assert (verdict.verdict, verdict.n, verdict.censored) == ("reproduced", 4, 0)
    assert "decades" in ours(rule, verdict)
    # A seed whose grid has a hole is not compared.
    rates(tmp_path, "none", 4, {0.001: 0.1, 0.01: 0.5})
    rates(tmp_path, "batch", 4, {0.001: 0.1, 0.01: 0.5})
    assert "seed 4 left out" in verdict_of(tmp_path, rule).note


def test_two_settings_are_no_grid(tmp_path: Path) -> None:
    rule = load_ledger()["rate-range"]
    for seed in range(4):
        rates(tmp_path, "none", seed, {0.01: 0.5, 0.1: 0.1 + seed / 100})
        rates(tmp_path, "batch", seed, {0.01: 0.5, 0.1: 0.5})
    verdict = verdict_of(tmp_path, rule)
    assert (verdict.verdict, verdict.n) == ("not run", 0)
    assert "seeds 0 to 3 left out" in verdict.note
    for seed in range(4):
        rates(tmp_path, "none", seed, {1.0: 0.0})
        rates(tmp_path, "batch", seed, {1.0: 0.1})
    assert verdict_of(tmp_path, rule).n == 4


def test_a_range_that_runs_off_the_grid_counts_as_at_least(tmp_path: Path) -> None:
    rule = load_ledger()["rate-range"]
    for seed in range(6):
        rates(tmp_path, "none", seed, {0.01: 0.1, 0.1: 0.5, 1.0: 0.3 + seed / 100})
        rates(tmp_path, "batch", seed, {0.01: 0.1, 0.1: 0.5, 1.0: 0.5})
    verdict = verdict_of(tmp_path, rule)  # BN's range is at least so wide: wider still would change nothing
    assert (verdict.verdict, verdict.censored, verdict.high) == ("reproduced", 6, float("inf"))
    for seed in range(6):
        rates(tmp_path / "b", "none", seed, {0.01: 0.5, 0.1: 0.5, 1.0: 0.3 + seed / 100})
        rates(tmp_path / "b", "batch", seed, {0.01: 0.5, 0.1: 0.5, 1.0: 0.5})
    assert verdict_of(tmp_path / "b", rule).verdict == "inconclusive"  # the plain net's too: nothing is known


def test_gap_is_compared_at_the_lowest_loss_both_reach(tmp_path: Path) -> None:
    rule = entry(metric="gap_at_equal_loss", effect="difference", bounds={"below": 0})
    for seed in range(3):
        rows = {"none": [(1.0, 1.2), (0.5, 1.0 + seed / 50)], "batch": [(0.5, 0.8), (0.1, 1.5)]}
        for norm, losses in rows.items():
            curve = [{"step": i + 1, "fit_loss": a, "test_loss": b} for i, (a, b) in enumerate(losses)]
            write(tmp_path, "study", f"norm={norm}", seed, rows=curve)
    verdict = verdict_of(tmp_path, rule)
    assert verdict.control == "0.5 0.52 0.54"
    assert verdict.treatment == "0.3 0.3 0.3"
    assert verdict.verdict == "reproduced"


def test_a_net_that_ended_before_its_first_evaluation_has_no_gap(tmp_path: Path) -> None:
    """Else both would be read untrained, where the plain one diverged."""
    rule = entry(metric="gap_at_equal_loss", effect="difference", bounds={"below": 0})
    for seed in range(3):
        begins = {"step": 0, "fit_loss": 2.3, "test_loss": 2.3 + seed / 50}
        learns = {"step": 10, "fit_loss": 0.5, "test_loss": 0.8 + seed / 50}
        write(tmp_path, "study", "norm=none", seed, rows=[begins], status="diverged")
        write(tmp_path, "study", "norm=batch", seed, rows=[begins | {"test_loss": 2.2}, learns])
    verdict = verdict_of(tmp_path, rule)
    assert verdict.verdict == "inconclusive"
    assert math.isnan(verdict.estimate)


def test_a_ratio_of_which_nothing_is_known_is_no_number(tmp_path: Path) -> None:
    """Neither arm ever reaches the target: each side of the ratio is open, and so is its estimate."""
    rule = entry(metric={"name": "steps_to", "target": {"norm": "layer"}}, effect="ratio", bounds={"below": 1})
    for seed in range(3):
        for norm, height in {"none": 0.3, "batch": 0.4, "layer": 0.9}.items():
            write(tmp_path, "study", f"norm={norm}", seed, climb(height, 800))
    verdict = verdict_of(tmp_path, rule)
    assert math.isnan(verdict.estimate)
    assert (verdict.low, verdict.high, verdict.censored) == (0, math.inf, 6)
    assert ours(rule, verdict) == "unknown [0, ∞]"


@pytest.mark.parametrize(
    ("bound", "heights", "side", "words"),
    [
        ({"below": 1}, (0.5, 0.9), "", "1.86x fewer steps ["),
        # The treatment never gets there in one seed: it takes more steps than were made, so the ratio is a least one.
        ({"below": 1}, (0.5, 0.9, 0.4), "at least", "at most 1.47x fewer steps ["),
        ({"above": 1}, (0.5, 0.4), "at least", "at least 1.25x more steps ["),
    ],
)
def test_an_effect_with_censored_runs_says_on_which_side_it_is(
    tmp_path: Path, bound: dict[str, float], heights: tuple[float, ...], side: str, words: str
) -> None:
    """Three seeds; the heights are the control's, the treatment's, and the treatment's in the last seed."""
    rule = entry(metric={"name": "steps_to"}, effect="ratio", bounds=bound)
    for seed in range(3):
        write(tmp_path, "study", "norm=none", seed, climb(heights[0], 800))
        write(tmp_path, "study", "norm=batch", seed, climb(heights[-1 if seed == 2 else 1], 800 if seed < 2 else 1000))
    verdict = verdict_of(tmp_path, rule)
    assert verdict.side == side
    assert ours(rule, verdict).startswith(words)
    assert f",{side}," in verdicts_csv([verdict])


def test_a_number_that_is_missing_is_unknown_and_not_censored(tmp_path: Path) -> None:
    rule = entry(metric={"name": "summary", "key": "cost"}, effect="difference", bounds={"below": 0})
    for seed in range(3):
        for norm in ("none", "batch"):
            write(tmp_path, "study", f"norm={norm}", seed, climb(0.5, 800), summary={"cost": None if seed else 1.0})
    verdict = verdict_of(tmp_path, rule)
    assert (verdict.verdict, verdict.censored) == ("inconclusive", 0)
    assert "4 number(s) could not be read off" in verdict.note


def test_more_claims_widen_every_interval(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    alone = verdict_of(tmp_path, entry())
    others = [entry(f"other-{i}", metric="best", effect="difference", bounds={"above": 0.4}) for i in range(4)]
    among = verdict_of(tmp_path, entry(), *others)
    assert alone.level == pytest.approx(0.95)
    assert among.level == pytest.approx(1 - 0.05 / 5)
    assert among.low < alone.low < alone.high < among.high
    assert among.p == pytest.approx(alone.p)


def test_the_seeds_that_a_claim_needs_are_counted_at_the_level_that_holm_allots_it(tmp_path: Path) -> None:
    """Four claims, none decided: each faces a quarter of 5%, as the first that fails does."""
    gains = [0.01, 0.05, -0.02, 0.04]
    for seed, gain in enumerate(gains):
        write(tmp_path, "study", "norm=none", seed, [0.1, 0.1], status="diverged")
        write(tmp_path, "study", "norm=batch", seed, [0.1, 0.1 + gain])
    higher = {"metric": "best", "effect": "difference"}
    fails = {"name": "fails", "chance": 0.1, "held_out": 10_000}
    share = entry(
        "share", metric=fails, control=None, treatment={"norm": "none"}, effect="share", bounds={"above": 0.5}
    )
    mean = entry("mean", **higher, bounds={"above": 0})
    others = [entry("half", **higher, bounds={"above": 0.005}), entry("less", **higher, bounds={"above": -0.005})]
    family = judge({e.id: e for e in (share, mean, *others)}, records.load_runs(tmp_path))
    assert [v.verdict for v in family] == ["inconclusive"] * 4
    assert [v.level for v in family] == pytest.approx([1 - 0.05 / 4] * 4)
    assert verdict_of(tmp_path, share).needs == 6  # 2 / 2**6 is the first below 5%
    assert family[0].needs == 8  # and 2 / 2**8 the first below 1.25%
    alone, among = (stats.required_n(gains, stats.Bounds(0), alpha) for alpha in (0.05, 0.05 / 4))
    assert alone != among
    assert verdict_of(tmp_path, mean).needs == alone
    assert family[1].needs == among


def test_a_claim_judged_alone_has_the_interval_of_a_family_of_one(tmp_path: Path) -> None:
    paired_runs(tmp_path, 3)
    runs = [{str(key): value for key, value in row.items()} for row in records.load_runs(tmp_path).to_dict("records")]
    alone = claims.judge_alone(entry(), runs, "laptop")
    assert alone.level == pytest.approx(0.95)
    assert alone == verdict_of(tmp_path, entry())


def test_another_studys_runs_are_never_read(tmp_path: Path) -> None:
    paired_runs(tmp_path, study="elsewhere")
    assert verdict_of(tmp_path, entry()) == Verdict("faster", "", "not run")
    empty = records.load_runs(tmp_path / "nowhere")
    assert isinstance(empty, pd.DataFrame)
    assert {v.verdict for v in judge(load_ledger(), empty)} == {"not run"}


def test_the_scoreboard_shows_every_claim_and_later_publications_apart(tmp_path: Path) -> None:
    paired_runs(tmp_path)
    rules = {
        e.id: e
        for e in (
            entry(),
            entry("slower", bounds={"above": 1}),
            entry("later", study="unborn"),
            entry("others", where="Ba et al. 2016", says="Layer normalization is faster."),
            entry("amended", amendments=[{"replaces": "none", "on": "2026-01-01", "why": "x"}]),
        )
    }
    verdicts = judge(rules, records.load_runs(tmp_path))
    text = scoreboard_markdown(verdicts, rules)
    own, others = text.split("**Asked of it afterwards:** 1 reproduced, 0 contradicted, 0 inconclusive, 0 not run.")
    assert "**Of the paper:** 2 reproduced, 1 contradicted, 0 inconclusive, 1 not run." in own
    assert "| others | Ba et al. 2016: Layer normalization is faster. |" in others
    assert "| faster |" in own
    assert "| faster |" not in others
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert " | contradicted | 5 | laptop |" in rows["slower"]
    assert rows["slower"].count(" | ") == rows["faster"].count(" | ") == rows["later"].count(" | ") == 6
    assert "(rule amended)" in rows["amended"]
    assert verdicts_csv(verdicts).splitlines()[1].startswith("faster,laptop,reproduced,0.")


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (14.8, "times_fewer", "14.8x fewer"),
        (0.778, "times_fewer", "1.29x more"),
        (0.018, "points", "+1.8 points"),
        (-0.0321, "points", "−3.21 points"),
        (0.252, "fraction", "25.2%"),
        (1.3, "times", "1.3x"),
        (13_600_000, "parameters", "13,600,000 parameters"),
    ],
)
def test_the_papers_number_is_told_in_its_unit(value: float, unit: str, said: str) -> None:
    paper = {"figure": {"number": {"value": value, "unit": unit}}}
    assert papers(entry(paper="figure.number"), paper) == said


CHANCE = {"chance": 0.1}
GRID = {"grid": ["optimizer.rate"], **CHANCE}


@pytest.mark.parametrize(
    ("metric", "effect", "said", "compared"),
    [
        ({"name": "best"}, "difference", "+1.2 points [+0.5, +25]", ("best accuracy, points", 100)),
        ({"name": "final", **CHANCE}, "difference", "+1.2 points [+0.5, +25]", ("accuracy at the end, points", 100)),
        ({"name": "grid_spread", **GRID}, "difference", "+1.2 points [+0.5, +25]", ("grid spread, points", 100)),
        (
            {"name": "usable_width", "keep": 0.8, **GRID},
            "difference",
            "+0.012 decades [+0.005, +0.25]",
            ("usable range of rates, decades", 1),
        ),
        (
            {"name": "gap_at_equal_loss"},
            "difference",
            "+0.012 nats [+0.005, +0.25]",
            ("gap at equal training loss, nats", 1),
        ),
        (
            {"name": "summary", "key": "top1_error"},
            "difference",
            "+1.2 points [+0.5, +25]",
            ("top1 error, points", 100),
        ),
        ({"name": "summary", "key": "cost"}, "difference", "+0.012 [+0.005, +0.25]", ("cost", 1)),
        ({"name": "steps_to"}, "ratio", "83.3x fewer steps [4, 200]", ("steps to the target", 1)),
        ({"name": "drift"}, "ratio", "83.3x less drift [4, 200]", ("drift", 1)),
        ({"name": "best"}, "ratio", "83.3x lower [4, 200]", ("best accuracy", 1)),
        ({"name": "fails", **CHANCE, "held_out": 100}, "share", "0 of 4 seeds [0%, 25%]", ("fails", 1)),
    ],
)
def test_an_effect_is_told_in_its_unit(
    metric: dict[str, Any], effect: str, said: str, compared: tuple[str, float]
) -> None:
    rule = entry(metric=metric, effect=effect)
    verdict = Verdict(rule.id, "laptop", "inconclusive", estimate=0.012, low=0.005, high=0.25, n=4)
    assert ours(rule, verdict) == said
    assert measured(rule) == compared


@pytest.mark.parametrize(
    ("seeds", "said"),
    [([4], "4"), ([4, 5], "4, 5"), ([11, 12, 13], "11 to 13"), ([0, 2, 3, 4, 9, 10], "0, 2 to 4, 9, 10")],
)
def test_many_seeds_are_told_as_ranges(seeds: list[int], said: str) -> None:
    assert claims._ranges(seeds) == said
