"""The report: one file, offline, true to its sources, published and own records never mistaken for each other."""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tests.conftest import no_room

from bn_replication import figures, panels, records, report, stats
from bn_replication.errors import UserError
from bn_replication.ledger import LEDGER, load_ledger, read_yaml
from browser import executable, tab
from test_figures import figure_1, figure_2, known_rates, rewrite, write_run

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
    known_rates(root / "published")
    figure_1(root / "runs", seeds=2, lift=0.005)
    for directory in records.run_directories(root / "published", "fig2_inception"):
        with_gradients(directory)
    return root, report.page([root / "published", root / "runs"], beside=root)


def with_gradients(directory: Path) -> None:
    """Give a run's probes what later records have: a gradient a layer, from the first step on."""
    rows = [
        row | ({"gradient": 1e-3 / row["step"]} if row["step"] else {})
        for row in records.run_rows(directory, records.ACTIVATIONS)
    ]
    amended = {"config.precision": "float32 as written, which it was not"}
    rewrite(directory, records.ACTIVATIONS, rows, amended=amended)


def test_an_amended_record_says_so_once_a_study(both: tuple[Path, str]) -> None:
    said = "config.precision: float32 as written, which it was not"
    assert Page(both[1]).text.count(said) == 1
    assert panels.amendments(records.load_runs(both[0] / "published", "fig1_mnist")) == []


def test_the_page_asks_nothing_of_any_network(both: tuple[Path, str]) -> None:
    text = both[1]
    page = Page(text)
    assert page.open == []
    # But for links to the records beside it, which are followed by a click and never fetched.
    outside = [r for r in page.references if not r.startswith(("#", "data:"))]
    assert {r for r in outside if not (both[0] / r).is_dir()} == set()
    assert "published/laptop/fig2_inception/" in outside
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


def chart(page: str, name: str) -> dict[str, Any]:
    """Return a chart's data as its script makes them: one series a row."""
    packed = re.search(rf'id="{name}"[^>]*>([^<]+)</script>', page)
    assert packed is not None
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    columns: dict[str, list[Any]] = data["series"]
    rows = zip(*columns.values(), strict=True)
    series = [{key: value for key, value in zip(columns, row, strict=True) if value is not None} for row in rows]
    return {**data, "series": series}


def test_a_thinned_line_is_the_line(tmp_path: Path) -> None:
    """Every point of the lines that were drawn lies on the lines that are left, to a fifth of a point."""
    steps = np.arange(120)  # what has more points matplotlib thins itself
    lines = [(steps, np.sin(steps / 40)), (steps, steps / 120.0), (steps, np.random.default_rng(0).normal(size=120))]
    figure = Figure()
    axes = figure.add_subplot()
    for x, y in lines:
        axes.plot(x, y)
    drawn = figures.render(figure).decode()
    inlined = str(panels.inline(drawn.encode(), "key", "a label"))
    before, after = (
        [np.array(d.split(), float).reshape(-1, 2) for d in re.findall(r' d="M([-\d. ]+)"', text)]
        for text in (drawn, inlined)
    )
    assert len(before) == len(after)
    thinner = 0
    for full, few in zip(before, after, strict=True):
        start, step = few[:-1], np.diff(few, axis=0)
        length = (step**2).sum(1)
        along = ((full[:, None] - start) * step).sum(-1) / np.where(length, length, 1)
        nearest = start + along.clip(0, 1)[..., None] * step
        assert np.linalg.norm(full[:, None] - nearest, axis=-1).min(1).max() < 0.2
        thinner += len(full) - len(few)
    assert thinner > 120
    assert len(re.findall(r'id="([^"]+)"', inlined)) == len(re.findall(r' id="', drawn))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', inlined)) <= set(re.findall(r' id="([^"]+)"', inlined))


def test_chart_data_are_the_records_numbers(both: tuple[Path, str]) -> None:
    curves = chart(both[1], "yours-laptop-fig1_mnist-curves")
    assert [arm["label"] for arm in curves["arms"]] == ["plain", "BN"]
    assert {(one["arm"], one["seed"]) for one in curves["series"]} == {(a, s) for a in (0, 1) for s in range(2)}
    plain = next(one for one in curves["series"] if one["arm"] == 0)
    assert plain["test_accuracy"] == [0.1, 0.5, 0.8, 0.9, 0.95]
    assert plain["train_loss"][0] is None  # there is no training loss before training
    layers = chart(both[1], "published-laptop-fig2_inception-layers")
    assert len(layers["layers"]) == 6
    assert max(len(one["step"]) for one in layers["series"]) == 3
    assert all(one["gradient"] == [None, 1e-5, 5e-6] for one in layers["series"])
    # Of before there were gradients.
    assert "gradient" not in chart(both[1], "published-laptop-fig1_mnist-layers")["series"][0]


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
    # Figure 4's numbers are of nets that were trained and then judged together.
    assert (report.command("fig4_ensemble", "laptop"), report.command("fig4_ensemble", "gpu")) == (
        "make ensemble",
        "make ensemble SCALE=gpu",
    )
    # As many seeds as were judged, and the device that the scale is for.
    run = "python -m bn_replication.train -m experiment=fig2_inception"
    assert report.command("fig2_inception", "laptop", 3) == run
    assert report.command("fig2_inception", "laptop", 5) == f"{run} 'seed=range(5)'"
    assert report.command("fig2_inception", "gpu", 5) == f"{run} scale=gpu machine.device=cuda"
    as_run = report.command("fig2_inception", "gpu", 5, "tf32")
    assert as_run == f"{run} scale=gpu machine.device=cuda precision=tf32"
    assert report.command("fig4_ensemble", "laptop", 9) == "make ensemble SEEDS=9"
    # More seeds than the study has by itself are run of the settings that the claim compares, target and all.
    slower, dropout = (load_ledger()[name] for name in ("x30-slower-start", "dropout"))
    three = f"{run} variant=inception,bn_x5,bn_x30 'seed=range(5)'"
    assert report.command("fig2_inception", "laptop", 5, entry=slower) == three
    assert report.command("fig2_inception", "laptop", 3, entry=slower) == run
    swept = "norm=batch model.dropout=0.0,0.4 'seed=range(9)'"
    assert report.command("ablation_dropout", "laptop", 9, entry=dropout).endswith(f"=ablation_dropout {swept}")
    assert report.command("beyond_norms", "laptop", 6) == "python -m bn_replication.train -m experiment=beyond_norms"
    assert "14.8x" in page.text  # Figure 3 as printed ...
    assert "Figure 3: the paper’s table beside ours" in page.text


def test_each_claim_says_what_differs_and_links_to_its_evidence(both: tuple[Path, str]) -> None:
    _, _, rest = both[1].partition('<article class="claim" id="bn-x5-speed">')
    article = rest.partition("</article>")[0]
    moves = {name for name, each in read_yaml(report.AMBIGUITIES).items() if "bn-x5-speed" in each["moves"]}
    assert len(moves) > 3
    assert set(re.findall(r'href="#open-([^"]+)"', article)) == moves
    assert 'href="#published-laptop-fig2_inception"' in article
    assert 'data-study="published-laptop-fig2_inception-layers"' in article
    assert 'href="published/laptop/fig2_inception/"' in article


def test_each_claim_has_its_plain_interval_beside_the_one_that_decides(both: tuple[Path, str]) -> None:
    root, text = both
    ledger = load_ledger()
    (found,) = report.sources([root / "published"], ledger)
    judged = [verdict for verdict in found.verdicts.values() if verdict.plain is not None]
    assert len(judged) > 5
    for verdict in judged:
        assert verdict.low <= verdict.plain[0] <= verdict.plain[1] <= verdict.high
        article = Page(text.partition(f'id="{verdict.claim}">')[2].partition("</article>")[0]).text
        said = report.unadjusted(ledger[verdict.claim], verdict)
        assert f"Not adjusted for the number of claims, the 95% interval is {said}" in article
    higher = found.verdicts["fig1-higher", "laptop"]
    effects = [float(b) - float(a) for a, b in zip(higher.control.split(), higher.treatment.split(), strict=True)]
    assert higher.plain == pytest.approx(stats.t_interval(effects, 0.05), abs=1e-4)


def test_in_a_narrow_terminal_a_claim_is_folded_and_never_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure_1(tmp_path / "runs", seeds=3)
    monkeypatch.setenv("COLUMNS", "40")
    assert report.main(["--root", str(tmp_path / "runs"), "--claim", "fig1-stable"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 40
    assert "not adjusted for the number of claims" in " ".join(out.split())


def test_provenance_names_what_runs_tell_and_passes_over_what_they_do_not(tmp_path: Path) -> None:
    for seed, revision in enumerate(("0123456789abcdef", None)):
        directory = write_run(tmp_path / "runs", "fig1_mnist", "norm=none", seed, [0.1, 0.2])
        record = json.loads((directory / records.RUN).read_text())
        record["environment"]["git"] = revision
        records.write_run_json(directory, record)
    (found,) = report.sources([tmp_path / "runs"], {})
    assert report.provenance(found)["environment"]["git"] == "0123456789ab"


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


@pytest.mark.slow
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


def test_histograms_keep_their_shape_in_one_character_a_bin() -> None:
    assert panels._characters([0, 500, 250]) == "0" + chr(48 + 15) + chr(48 + 8)
    assert panels._characters([0] * 60 + [1] * 4) == "0" * 30 + chr(48 + 15) * 2
    assert panels._characters(None) == panels._characters([0, 0]) == ""


def test_the_study_of_rates_says_what_is_left_of_the_speed_up(both: tuple[Path, str]) -> None:
    text = Page(both[1]).text
    assert "The usable range of rates" in text
    assert "BN alone, at its own best rate 0.01 0.05 4x 4x, 4x, 4x +30.0 points" in text
    # Figure 2's own multiples stand below, with the paper's numbers.
    assert "Figure 2’s BN-x5 0.02 0.1 4x paper: 14.8x +20.0 points" in text


def test_only_figure_2_shows_what_figure_3_still_lacks(tmp_path: Path) -> None:
    for study in ("fig2_inception", "own_best_rate"):
        for variant in ("inception", "bn_baseline"):
            write_run(tmp_path, study, f"variant={variant}", 0, [0.1, 0.4])
    found, ledger = report.sources([tmp_path], {}), load_ledger()
    models = {
        study: [row["model"] for row in panels.panels(study, found, {}, ledger)[0]["table"]]
        for study in ("fig2_inception", "own_best_rate")
    }
    assert models["own_best_rate"] == ["Inception", "BN-Baseline"]
    assert set(models["fig2_inception"]) > {"Inception", "BN-Baseline", "BN-x5"}


@pytest.mark.slow
def test_runs_that_are_the_published_ones_are_not_drawn_twice(both: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = both
    for name in ("published", "runs"):
        shutil.copytree(root / "published" / "laptop" / "fig1_mnist", tmp_path / name / "laptop" / "fig1_mnist")
    page = report.page([tmp_path / "published", tmp_path / "runs"])
    assert "These are published runs, to the byte" in page
    assert 'id="published-laptop-fig1_mnist-curves"' in page
    assert 'id="yours-laptop-fig1_mnist-curves"' not in page
    write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 0, [0.1, 0.2])
    assert 'id="yours-laptop-fig1_mnist-curves"' in report.page([tmp_path / "published", tmp_path / "runs"])


# --- in a browser ------------------------------------------------------------------------------------------


# Texts whose contrast with what they stand on is below 4.5, the least that WCAG's level AA allows.
FAINT = r"""() => {
  const channels = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = channels(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("p, td, th, dt, dd, span, a, label, pre, figcaption, summary")];
  return texts.filter((each) => {
    const [a, b] = [light(channels(getComputedStyle(each).color)), light(ground(each))];
    return each.textContent.trim() && (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((each) => each.textContent.trim().slice(0, 60));
}"""


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="no Chromium on this machine")
def test_in_a_browser_it_draws_every_chart_every_control_works_and_nobody_is_asked(
    both: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(both[1])
    with tab(tmp_path / "profile") as page:
        page.open(path)
        page.evaluate("[...waiting.keys()].forEach(begin)")
        page.wait("[...document.querySelectorAll('.chart')].every(f => f.querySelector('.view svg'))")
        charts = page.evaluate("document.querySelectorAll('.chart').length")
        assert charts == 5  # curves of three studies, of one twice; distributions
        # Each control of each chart is named, reached with the keyboard, and changes the picture.
        unmoved = page.evaluate(
            """(async () => {
              const picture = (figure) => figure.querySelector('.view').innerHTML, still = [];
              const settle = async (figure, before) => {
                for (let i = 0; i < 60 && picture(figure) === before; i++)
                  await new Promise((done) => setTimeout(done, 20));
              };
              for (const figure of document.querySelectorAll('.chart'))
                for (const control of [...figure.querySelectorAll('.controls input, .controls select')]) {
                  const isList = control.tagName === 'SELECT', label = control.closest('label').textContent;
                  if (!control.isConnected || control.disabled || (isList && control.options.length < 2)) continue;
                  let before = picture(figure);
                  control.focus();
                  if (document.activeElement !== control || !label.trim()) still.push('unreached: ' + label);
                  if (isList) {
                    control.selectedIndex = control.selectedIndex ? 0 : control.options.length - 1;
                    control.dispatchEvent(new Event('change'));
                  } else control.click();
                  await settle(figure, before);
                  if (picture(figure) === before) still.push(label);
                  before = picture(figure);
                  if (!isList) control.click(), await settle(figure, before);
                }
              return still;
            })()"""
        )
        assert unmoved == []
        # From a study to its layers.
        page.evaluate("document.querySelector(`[data-study='published-laptop-fig2_inception-layers']`).click()")
        page.wait("document.querySelector('[data-distributions] .controls').textContent.includes('6. module5.act')")
        # A layer's gradients, where the records have them, and not where they have none.
        views = (
            "[...document.querySelectorAll('[data-distributions] select')].find(s => s.options[0].value === 'bands')"
        )
        assert page.evaluate(f"[...{views}.options].map(o => o.value)") == ["bands", "bins", "gradients"]
        page.evaluate(f"{views}.value = 'gradients', {views}.dispatchEvent(new Event('change'))")
        page.wait("document.querySelector('[data-distributions] .view').textContent.includes('rms of d loss / d W')")
        page.evaluate("document.querySelector(`[data-study='published-laptop-fig1_mnist-layers']`).click()")
        page.wait("document.querySelector('[data-distributions] .controls').textContent.includes('3. ')")
        page.wait(f"{views}.options.length === 2 && {views}.value === 'bands'")
        # What a screen reader is told: a name for every picture, table header, control and page part.
        named = "(e) => e.getAttribute('aria-label') || e.closest('label') || e.closest('.view[aria-label]')"
        parts = "'svg[role=img], .view, [role=group], nav, select, input'"
        assert page.evaluate(f"[...document.querySelectorAll({parts})].every({named})")
        assert page.evaluate("[...document.querySelectorAll('th')].every((th) => th.scope)")
        for width in (1280, 390):
            page.open(path, width)
            page.evaluate("[...waiting.keys()].forEach(begin)")
            page.wait("[...document.querySelectorAll('.chart')].every(f => f.querySelector('.view svg'))")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(f"({FAINT})()") == []
        assert page.pdf().startswith(b"%PDF")
        assert page.complaints == []
        assert page.requests == []


def test_studies_drawn_side_by_side_are_those_drawn_one_by_one(
    both: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what is wrong with a record is told in the same line by another process."""
    studies, ledger = ["fig1_mnist", "fig2_inception"], load_ledger()
    found = report.sources([both[0] / "published"], ledger)
    shutil.copytree(both[0] / "published", tmp_path / "published")
    damaged = next((tmp_path / "published").rglob(f"*/fig1_mnist/*/*/{records.CURVES}*"))
    damaged.write_bytes(b"{")
    drawn, told = [], []
    for worth in (1, 3):
        monkeypatch.setattr(panels, "WORTH", worth)
        every = panels.every(studies, found, {}, ledger)
        drawn.append([{key: one[key] for key in one if key != "source"} for study in studies for one in every[study]])
        with pytest.raises(UserError) as refusal:
            panels.every(studies, report.sources([tmp_path / "published"], {}), {}, ledger)
        told.append(str(refusal.value))
    assert drawn[0] == drawn[1]
    assert {one["key"] for one in drawn[0]} == {"published-laptop-fig1_mnist", "published-laptop-fig2_inception"}
    assert told[0] == told[1]
    assert str(damaged) in told[0]


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize(
    ("content", "found"),
    [(b'{"step":0}\n{"st', "another content"), (lzma.compress(b"{}")[:-9], "another content"), (None, "no file")],
)
def test_damaged_curves_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, found: str, claimed: bool
) -> None:
    """Whether a claim reads them, or the figures alone do."""
    run = write_run(tmp_path / "runs", "fig1_mnist" if claimed else "of_mine", "norm=none", 0, [0.1, 0.2])
    path = run / records.CURVES
    path.unlink()
    if content:
        (path.with_name(path.name + records.PACKED) if content.startswith(b"\xfd") else path).write_bytes(content)
    assert report.main(["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 2
    expected = f"expected the one whose digest is in run.json; remove {run} to run it again"
    assert capsys.readouterr().err == f"{path}: found {found}, {expected}\n"
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("summary", None, "NoneType as summary, expected a whole record"),
        ("seed", "1", "str as seed, expected a whole record"),
        ("config", ..., "no config, expected a whole record"),
        ("status", "done", "status 'done', expected one of completed, diverged, failed"),
    ],
)
def test_a_record_that_is_not_whole_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, found: str
) -> None:
    path = write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 0, [0.1, 0.2]) / records.RUN
    record = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps({name: record[name] for name in record if record[name] is not ...}))
    assert report.main(["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err == f"{path}: found {found}; remove it to run again\n"


def test_a_run_copied_beside_itself_is_told_and_not_counted_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 0, [0.1, 0.2])
    copy = shutil.copytree(run, run.with_name("seed=0.bak"))
    assert report.main(["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 2
    found = "found the record of laptop/fig1_mnist/norm=none/seed=0, expected that of its own path"
    assert capsys.readouterr().err == f"{copy}: {found}; move it back, or out of here\n"


def test_what_cannot_be_read_is_not_told_as_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 0, [0.1, 0.2])
    there, out = ["--root", str(tmp_path / "runs")], tmp_path / "report.html"
    with no_room():
        assert report.main([*there, "--out", str(out)]) == 2
    expected = "expected room to write; free some space or mend --out"
    assert capsys.readouterr().err == f"{out}: found 'File too large', {expected}\n"
    (run / records.RUN).unlink()
    (run / records.RUN).mkdir()
    assert report.main([*there, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{run / records.RUN}: found 'Is a directory', expected a place to read")
    assert said.count("\n") == 1
    assert not out.exists()


def test_links_lead_to_records_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with RESULTS=...: the page in results/ below here, records on another disk."""
    write_run(tmp_path / "disk" / "runs", "fig1_mnist", "norm=none", 0, [0.1, 0.2])
    (tmp_path / "here" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for root in (tmp_path / "disk" / "runs", Path("../disk/runs")):
        links = [r for r in Page(report.page([root])).references if r.endswith("/fig1_mnist/")]
        assert links
        assert all((Path("results") / link).is_dir() for link in links)
