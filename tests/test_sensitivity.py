"""Values the paper leaves open: each alternative changes one of them, and an answer that hangs on it is seen to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tests.conftest import Compose

from bn_replication import records, report, sensitivity, status
from bn_replication.ledger import AMBIGUITIES, load_ledger, read_yaml
from bn_replication.sensitivity import CHOSEN, CLAIMS, Row
from bn_replication.train import CONFIGS
from synthetic import climb, write
from test_report import Page

REGISTER = read_yaml(AMBIGUITIES)
OPEN = {name: item for name, item in REGISTER.items() if "alternatives" in item}
SETS = {file: other["sets"] for item in OPEN.values() for file, other in item["alternatives"].items()}
# Two open values may share a file, as both momenta do: each has its own study.
TESTED = {file: {s for i in OPEN.values() if file in i["alternatives"] for s in i["tested"]} for file in SETS}
BASE: dict[str, dict[str, Any]] = {}
GROUND = {"sensitivity_mnist": "norm=batch", "sensitivity_inception": "variant=bn_baseline"}


# --- what is tried -----------------------------------------------------------------------------------------


def flat(composed: Compose, study: str, *words: str) -> dict[str, Any]:
    cfg, _ = composed(f"experiment={study}", GROUND[study], *words)
    return records.flatten(cfg.model_dump(mode="json", exclude={"machine"}))


@pytest.mark.parametrize(("file", "study"), [(file, study) for file in SETS for study in sorted(TESTED[file])])
def test_an_alternative_changes_the_one_value_that_the_register_names(composed: Compose, file: str, study: str) -> None:
    if study not in BASE:
        BASE[study] = flat(composed, study)
    base, here = BASE[study], flat(composed, study, f"alternative={file}")
    changed = {key: here.get(key) for key in base | here if base.get(key) != here.get(key)}
    assert changed == SETS[file] | {"alternative": file}


def test_the_chosen_values_are_what_a_run_without_alternative_has(composed: Compose) -> None:
    for study in GROUND:
        assert flat(composed, study, f"alternative={CHOSEN}") == flat(composed, study) | {"alternative": CHOSEN}
    cfg, _ = composed("setting=mnist")
    assert "alternative" not in cfg.identity()  # as every earlier run was
    assert "lrn_places" not in composed("setting=inception", "variant=inception")[0].identity()["model"]


def test_register_files_and_studies_name_the_same_alternatives() -> None:
    files = {path.stem for path in (CONFIGS / "alternative").glob("*.yaml")}
    assert files == {CHOSEN, *SETS}
    for item in OPEN.values():
        assert len(item["alternatives"]) == 2, item["what"]
        if "value" in item:
            (key,) = {key for other in item["alternatives"].values() for key in other["sets"]}
            values = [other["sets"][key] for other in item["alternatives"].values()]
            assert key.endswith(item["key"])
            assert len({*values, item["value"]}) == 3, item["what"]
    for study in CLAIMS:
        own = [path.stem for path in (CONFIGS / "experiment").glob(f"{study}*.yaml")]
        swept = [file for name in own for file in status.axes(name, "laptop")["alternative"]]
        assert sorted(swept) == sorted([CHOSEN, *(file for file in SETS if study in TESTED[file])])
        # What the sweep trains is what the claims compare.
        ((key, arms),) = [(k, v) for k, v in status.axes(study, "laptop").items() if k in ("norm", "variant")]
        for claim in CLAIMS[study]:
            entry = load_ledger()[claim]
            assert entry.control is not None
            assert {*entry.control[key], *entry.treatment[key]} <= set(arms)


# --- what is said of it ------------------------------------------------------------------------------------

BN_HIGHER, BN_LOWER, PLAIN = 0.9, 0.3, 0.5


def tried(root: Path, alternative: str, bn: float, *, plain: bool = True, seeds: int = 5, study: str = "") -> None:
    for seed in range(seeds):
        for norm, end in (("none", PLAIN), ("batch", bn + seed / 1000)):
            if norm == "batch" or plain:
                arm = f"alternative={alternative},norm={norm}"
                write(root, study or "sensitivity_mnist", arm, seed, climb(end, 800))


def rows_of(root: Path, claim: str = "fig1-higher") -> dict[str, Row]:
    runs = records.load_runs(root)
    return {row.alternative: row for row in sensitivity.table(REGISTER, load_ledger(), runs) if row.claim == claim}


def test_an_answer_that_turns_does_not_survive_and_one_that_stays_does(tmp_path: Path) -> None:
    tried(tmp_path, CHOSEN, BN_HIGHER)
    tried(tmp_path, "rate_lower", BN_LOWER)
    tried(tmp_path, "rate_higher", 0.7)
    rows = rows_of(tmp_path)
    turned, stays = rows["rate_lower"], rows["rate_higher"]
    assert (turned.survives, turned.verdict, turned.chosen_verdict) == ("no", "contradicted", "reproduced")
    assert (turned.same_side, turned.value, turned.sets) == (False, "mnist-rate", "optimizer.rate=0.1")
    assert turned.estimate == pytest.approx(BN_LOWER + 0.002 - PLAIN)
    assert turned.low < turned.estimate < turned.high < 0 < turned.chosen_low
    assert (stays.survives, stays.same_side, stays.scale, stays.n, stays.note) == ("yes", True, "laptop", 5, "")
    assert rows["momentum_none"].survives == "not run"
    assert (rows["momentum_none"].scale, rows["momentum_none"].n) == ("", 0)


def test_what_decides_nothing_agrees_with_nothing(tmp_path: Path) -> None:
    tried(tmp_path, CHOSEN, BN_HIGHER)
    for seed, end in enumerate((0.4, 0.7, 0.55)):
        write(tmp_path, "sensitivity_mnist", "alternative=rate_lower,norm=none", seed, climb(PLAIN, 800))
        write(tmp_path, "sensitivity_mnist", "alternative=rate_lower,norm=batch", seed, climb(end, 800))
    row = rows_of(tmp_path)["rate_lower"]
    assert (row.verdict, row.survives, row.same_side) == ("inconclusive", "undecided", True)
    assert sensitivity.words(row, load_ledger()["fig1-higher"])["survives"] == "undecided, estimates on one side"


def test_a_side_is_told_only_where_it_is_known(tmp_path: Path) -> None:
    """An arm that never gets there gives a least ratio: below the bound of 1, it may be on either side."""
    for alternative, ends in {CHOSEN: (0.9, 0.9), "rate_lower": (0.9, 0.4), "rate_higher": (0.4, 0.4)}.items():
        for seed in range(4):
            write(tmp_path, "sensitivity_mnist", f"alternative={alternative},norm=none", seed, climb(PLAIN, 800))
            treated = climb(ends[seed % 2], 800)
            write(tmp_path, "sensitivity_mnist", f"alternative={alternative},norm=batch", seed, treated)
    rows = rows_of(tmp_path, "fig1-faster")
    assert (rows["rate_lower"].side, rows["rate_lower"].chosen_side) == ("at least", "")
    assert rows["rate_lower"].estimate < 1
    assert rows["rate_lower"].same_side is None
    assert (rows["rate_higher"].side, rows["rate_higher"].same_side) == ("at least", False)
    said = sensitivity.words(rows["rate_lower"], load_ledger()["fig1-faster"])
    assert said["here"].startswith("at most ")
    assert not said["chosen"].startswith("at ")


def test_a_missing_run_is_said(tmp_path: Path) -> None:
    tried(tmp_path, CHOSEN, BN_HIGHER)
    tried(tmp_path, "rate_lower", 0.7, seeds=4)
    write(tmp_path, "sensitivity_mnist", "alternative=rate_lower,norm=batch", 4, climb(0.7, 800))
    row = rows_of(tmp_path)["rate_lower"]
    assert (row.n, row.chosen_n) == (4, 5)
    assert "seed 4 left out: a run is missing in an arm" in row.note


def test_a_net_without_bn_stands_in_under_every_eps_and_under_nothing_else(tmp_path: Path) -> None:
    tried(tmp_path, CHOSEN, BN_HIGHER)
    tried(tmp_path, "eps_1e-3", BN_LOWER, plain=False, study="sensitivity_mnist_eps")
    tried(tmp_path, "rate_lower", BN_LOWER, plain=False)
    rows = rows_of(tmp_path)
    assert (rows["eps_1e-3"].survives, rows["eps_1e-3"].n) == ("no", 5)
    assert rows["rate_lower"].survives == "not run"
    assert "no run fits the control, norm=none" in rows["rate_lower"].note


def test_the_table_is_no_part_of_the_scoreboard(tmp_path: Path) -> None:
    """Runs of alternatives change no verdict on any claim, nor the level at which one is judged."""
    from bn_replication.claims import judge

    tried(tmp_path, CHOSEN, BN_HIGHER)
    before = judge(load_ledger(), pd.DataFrame())
    assert [(v.claim, v.verdict) for v in judge(load_ledger(), records.load_runs(tmp_path))] == [
        (v.claim, v.verdict) for v in before
    ]


def test_the_report_shows_the_table_and_escapes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<script>alert(1)</script>"
    register = {"mnist-rate": {**REGISTER["mnist-rate"], "chosen": evil}}
    register["mnist-rate"]["alternatives"] = {"rate_lower": {"sets": {"optimizer.rate": evil}, "why": evil}}
    place = tmp_path / "ambiguities.yaml"
    place.write_text(yaml.safe_dump(register))
    monkeypatch.setattr(report, "AMBIGUITIES", place)
    tried(tmp_path / "published", CHOSEN, BN_HIGHER)
    tried(tmp_path / "published", "rate_lower", BN_LOWER)
    text = report.page([tmp_path / "published"])
    assert evil not in text
    page = Page(text)
    assert page.open == []
    assert "Does the answer survive another choice? Published records" in page.text
    assert f"optimizer.rate={evil}" in page.text
    assert "+40.2 points" in page.text
    assert "contradicted, n = 5" in page.text
    assert len(page.ids) == len(set(page.ids))
    # Some twenty arms in one figure show nothing: there is none.
    assert "fig1a" not in text
