"""The report: one file, offline, true to its sources, published and own records never mistaken for each other."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bn_replication import records, report
from bn_replication.ledger import LEDGER, load_ledger, read_yaml
from test_figures import figure_1, figure_2, write_run

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects a page's references, identifiers, text by element and any tag left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.data: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        self.references += [values[key] for key in ("src", "href", "xlink:href", "data") if values.get(key)]
        self.ids += [values["id"]] if values.get("id") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.data.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for tag, data in self.data if tag not in ("script", "style")).split())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A page on published records of Figures 1 and 2 and three own seeds of Figure 1."""
    root = tmp_path_factory.mktemp("results")
    figure_1(root / "published", seeds=3)
    figure_2(root / "published", seeds=2)
    figure_1(root / "runs", seeds=2, lift=0.005)
    return root, report.page([root / "published", root / "runs"])


def test_the_page_asks_nothing_of_any_network(both: tuple[Path, str]) -> None:
    text = both[1]
    page = Page(text)
    assert page.open == []
    outside = [r for r in page.references if not r.startswith(("#", "data:"))]
    assert outside == []
    assert len(text.encode()) < report.LIMIT
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text  # and a browser would refuse what slipped through


def test_every_claim_has_a_row_with_its_verdict_and_links_lead_somewhere(both: tuple[Path, str]) -> None:
    page, ledger = Page(both[1]), load_ledger()
    assert len(page.ids) == len(set(page.ids))
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert set(ledger) <= set(page.ids)
    for claim, entry in ledger.items():
        assert claim in page.text
        assert " ".join(entry.says.split()) in page.text
    assert "reproduced" in page.text
    assert "not run" in page.text


def test_published_and_own_records_are_judged_apart_and_named(both: tuple[Path, str]) -> None:
    root, text = both
    page = Page(text)
    assert "Published records" in page.text
    assert "Your runs" in page.text
    ledger, paper = load_ledger(), read_yaml(report.PAPER)
    found = report.sources([root / "published", root / "runs"], ledger)
    rows = {row["entry"].id: row["cells"] for row in report.scoreboard(ledger, paper, found)}
    assert [cell["n"] for cell in rows["fig1-higher"]] == ["3", "2"]
    assert rows["fig1-higher"][0]["ours"] != rows["fig1-higher"][1]["ours"]
    assert rows["bn-alone"][1]["verdict"] == "not run"
    for cell in rows["fig1-higher"]:
        assert cell["ours"] in page.text
    own = [entry for entry in page.ids if entry.startswith("yours-")]
    assert any("fig1_mnist" in entry for entry in own)
    assert not any("fig2" in entry for entry in own)


def test_chart_data_are_the_records_numbers(both: tuple[Path, str]) -> None:
    blocks = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', both[1], re.DOTALL)
    data = {name: json.loads(text) for name, text in blocks}
    curves = data["yours-laptop-fig1_mnist-curves"]
    assert [arm["label"] for arm in curves["arms"]] == ["plain", "BN"]
    assert {(one["arm"], one["seed"]) for one in curves["series"]} == {(a, s) for a in (0, 1) for s in range(2)}
    plain = next(one for one in curves["series"] if one["arm"] == 0)
    assert plain["test_accuracy"] == [0.1, 0.5, 0.8, 0.9, 0.95]
    assert plain["train_loss"][0] is None  # there is no training loss before training
    packed = re.search(r'id="published-laptop-fig2_inception-layers"[^>]*>([^<]+)</script>', both[1])
    assert packed is not None
    layers = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert len(layers["layers"]) == 6
    assert max(len(one["step"]) for one in layers["series"]) == 3


def test_the_rule_and_the_command_stand_beside_each_claim(both: tuple[Path, str]) -> None:
    page = Page(both[1])
    rules = [data for tag, data in page.data if tag == "pre"]
    raw = read_yaml(LEDGER)
    shown = [body for body in rules if body.startswith("kind: empirical\nstudy: fig2_inception")]
    import yaml

    assert {key: raw["bn-x5-speed"][key] for key in ("metric", "control", "treatment", "effect", "bounds")} in [
        {key: yaml.safe_load(body).get(key) for key in ("metric", "control", "treatment", "effect", "bounds")}
        for body in shown
    ]
    assert "python -m bn_replication.train -m experiment=fig2_inception" in rules
    assert "14.8x" in page.text  # Figure 3 as printed ...
    assert "Figure 3: the paper’s table beside ours" in page.text


def test_what_records_contain_cannot_become_markup(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "runs", "adhoc", "norm=none", 0, [0.1, 0.2], probes=1)
    record = json.loads((directory / "run.json").read_text())
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    record["environment"]["cpu"] = evil
    record["choices"]["norm"] = evil
    records.write_run_json(directory, record)
    text = report.page([tmp_path / "runs"])
    assert "<script>alert(1)" not in text
    assert "<img src=x" not in text
    assert evil in Page(text).text


@pytest.mark.parametrize("which", ["neither", "published", "runs"])
def test_it_works_with_either_side_empty(tmp_path: Path, which: str) -> None:
    roots = [tmp_path / "published", tmp_path / "runs"]
    if which != "neither":
        write_run(tmp_path / which, "fig1_mnist", "norm=none", 0, [0.1, 0.2])
    text = Page(report.page(roots)).text
    for name, label in (("published", "Published records"), ("runs", "Your runs")):
        assert (f"{label} None yet in" in text) == (which != name)


def test_a_run_that_ended_at_once_does_not_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "fig2_inception", "variant=inception_x5", 0, [0.1], status="diverged")
    assert "1 diverged" in Page(report.page([tmp_path / "runs"])).text


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figure_1(tmp_path / "runs", seeds=3)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    roots = ["--root", str(tmp_path / "runs")]
    assert report.main([*roots, "--claim", "fig1-higher"]) == 0
    out = capsys.readouterr().out
    assert "With BN the network ends at a higher test accuracy." in out
    assert "points [" in out
    assert "\x1b[3" not in out
    assert max(map(len, out.splitlines())) <= 70
    assert report.main([*roots, "--claim", "fig1-highr"]) == 2
    assert "did you mean 'fig1-higher'?" in capsys.readouterr().err
    assert report.main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "mend --root" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert report.main([*roots, "--out", str(tmp_path / "file" / "report.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert report.main([*roots, "--out", str(tmp_path / "out" / "report.html")]) == 0
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
