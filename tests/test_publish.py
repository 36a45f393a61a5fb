"""Publishing: what is promoted is whole, small, true to the run, and never silently something else."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from tests.conftest import no_room

from bn_replication import publish, records, verify
from bn_replication.errors import UserError
from bn_replication.ledger import load_ledger
from test_figures import figure_1, write_run

MARKERS = "before\n<!-- scoreboard -->\n<!-- /scoreboard -->\nafter\n"


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two arms of two seeds in ``runs``, nothing in ``published``, a README with its markers."""
    figure_1(tmp_path / "runs", seeds=2)
    (tmp_path / "README.md").write_text(MARKERS)
    return tmp_path


def promoted(place: Path, **options: bool) -> list[str]:
    """Publish without figures and pages, which take a second; return what became of each run."""
    return [p.state for p in publish.publish(place / "runs", place / "published", **options)]


def run(place: Path, *arguments: str) -> int:
    paths = ["--from", str(place / "runs"), "--to", str(place / "published"), "--readme", str(place / "README.md")]
    return publish.main([*arguments, *paths])


def test_a_published_run_says_what_the_run_said_in_less_room(place: Path) -> None:
    assert promoted(place) == ["new"] * 4
    source = place / "runs/laptop/fig1_mnist/norm=batch/seed=1"
    target = place / "published/laptop/fig1_mnist/norm=batch/seed=1"
    assert records.unpacked(target / "curves.jsonl.xz") == (source / "curves.jsonl").read_bytes()
    before, after = (list(records.read_rows(path / "activations.jsonl")) for path in (source, target))
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        half = 0.005 * max(map(abs, old["percentiles"]))  # of the last digit that the largest keeps, at most
        assert new["percentiles"] == pytest.approx(old["percentiles"], abs=half)
        assert new.get("units") == old.get("units")
    assert before[1]["mean"] == 1.0123456789
    assert after[1]["mean"] == 1.01
    record = records.read_run_json(target)
    assert record is not None
    assert record["published"]["from"] == json.loads((source / "run.json").read_text())["files"]
    assert records.digest(target / "activations.json.xz") == record["files"]["activations.json"]


def test_histograms_stay_with_the_lowest_seed_of_an_arm(place: Path) -> None:
    write_run(place / "published", "fig1_mnist", "norm=none", 0, [0.1, 0.2], probes=1)
    assert promoted(place, replace=True) == ["new", "new", "replaced", "new"]
    for arm in ("norm=none", "norm=batch"):
        for seed in (0, 1):
            directory = place / f"published/laptop/fig1_mnist/{arm}/seed={seed}"
            rows = list(records.read_rows(directory / "activations.jsonl"))
            steps = sorted({row["step"] for row in rows})
            kept = {*steps[:: publish.EVERY], steps[-1]} if seed == 0 else set()
            assert {row["step"] for row in rows if "histogram" in row} == kept


def test_the_lowest_seed_is_the_lowest_number(tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path / "runs", "fig1_mnist", "norm=none", seed, [0.1, 0.2], probes=1)
    publish.publish(tmp_path / "runs", tmp_path / "published")
    kept = {
        directory.name: any("histogram" in row for row in records.read_rows(directory / "activations.jsonl"))
        for directory in records.run_directories(tmp_path / "published")
    }
    assert kept == {"seed=2": True, "seed=10": False}


def test_histograms_are_parts_per_thousand_and_thinned_only_as_far_as_needed() -> None:
    counts = publish.thousandths([1, 3, 0])
    assert counts == [250, 750, 0]
    rows = [{"step": s, "layer": layer, "histogram": counts} for s in range(6) for layer in "ab"]
    lines = records.table_rows(publish.compact(rows, 2))
    # At every second probe, and at the last.
    assert [line["step"] for line in lines if line.get("histogram") == counts] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert b"histogram" not in publish.compact(rows, 0)


@pytest.mark.parametrize(
    ("row", "slim"),
    [
        # The decimals that the largest of a layer's numbers has with three digits.
        ({"percentiles": [-1.0123, -0.0044512, 1.0142]}, {"percentiles": [-1.01, 0.0, 1.01]}),
        ({"percentiles": [0.00012345, 0.45678, 0.9996]}, {"percentiles": [0.0, 0.46, 1.0]}),
        ({"percentiles": [-12345.6, 6.7891, 77.7]}, {"percentiles": [-12300.0, 0.0, 100.0]}),
        ({"percentiles": [-0.0, 0.0, 0.0]}, {"percentiles": [0.0, 0.0, 0.0]}),
        ({"mean": 4.5891e-08, "std": 1.0001}, {"mean": 0.0, "std": 1.0}),
        ({"mean": -0.51234, "std": 0.01234}, {"mean": -0.512, "std": 0.0123}),
        ({"mean": 0.0123, "std": 4.5678e-05}, {"mean": 0.0123, "std": 4.57e-05}),
        ({"percentiles": [None], "mean": None, "std": None}, {"percentiles": [None], "mean": None, "std": None}),
        # A claim reads single units: each keeps its own three digits.
        ({"units": [[-1.0123, -0.0044512]], "step": 12345}, {"units": [[-1.01, -0.00445]], "step": 12345}),
    ],
)
def test_numbers_of_one_layer_are_rounded_together(row: dict[str, object], slim: dict[str, object]) -> None:
    assert publish.slimmed(row) == slim
    assert publish.slimmed(slim) == slim  # and once is enough
    assert not re.search(r"-0\.0[],]", str(publish.slimmed(row)))


def test_a_table_gives_its_rows_back_but_for_what_is_null() -> None:
    rows = [{"step": 0, "mean": None, "units": [[None, 0.25]]}, {"step": 10, "mean": 1e-08, "histogram": [1000, 0]}]
    content = records.table(rows)
    assert json.loads(content)["histogram"] == [None, [1000, 0]]
    assert records.table_rows(content) == [{"step": 0, "units": [[None, 0.25]]}, rows[1]]
    assert records.table_rows(records.table([])) == []


def noisy(directory: Path, snapshots: int, layers: int, units: int) -> None:
    """Replace a run's activations by numbers that do not compress, of the largest size a study asks for."""
    import random

    rng = random.Random(0)
    rows = []
    for step in range(snapshots):
        for layer in range(layers):
            row = {"step": step, "layer": f"l{layer}", "mean": rng.gauss(0, 1), "std": rng.random()}
            row |= {"percentiles": [rng.gauss(0, 1) for _ in range(3)]}
            row["histogram"] = [rng.randrange(200) for _ in range(64)]
            rows.append(row)
        if units:
            rows[-1]["units"] = [[rng.gauss(0, 1) for _ in range(units)] for _ in range(3)]
    text = "".join(map(records.json_line, rows)).encode()
    (directory / "activations.jsonl").write_bytes(text)
    record = json.loads((directory / "run.json").read_text())
    record["files"]["activations.jsonl"] = records.digest(text)
    records.write_run_json(directory, record)


def test_the_largest_probes_fit(tmp_path: Path) -> None:
    deep = write_run(tmp_path / "runs", "deep", "norm=batch", 0, [0.1, 0.2])
    noisy(deep, snapshots=44, layers=60, units=0)
    deeper = write_run(tmp_path / "runs", "deeper", "norm=batch", 0, [0.1, 0.2])
    noisy(deeper, snapshots=66, layers=60, units=0)
    wide = write_run(tmp_path / "runs", "wide", "norm=batch", 0, [0.1, 0.2])
    noisy(wide, snapshots=50, layers=3, units=100)
    promotions, refusals = publish.plan(tmp_path / "runs", tmp_path / "published")
    assert refusals == []
    every = {}
    for promotion in promotions:
        publish.promote(promotion)
        assert sum(path.stat().st_size for path in promotion.target.iterdir()) <= publish.LIMIT
        every[promotion.study[1]] = promotion.record["published"]["histogram_every"]
        assert ("histograms thinned" in promotion.warning) == (every[promotion.study[1]] != publish.EVERY)
    # Random counts compress worst: half as many probes again, and histograms are kept at fewer of them.
    assert every == {"deep": 2, "deeper": 4, "wide": 2}


def test_a_run_over_the_limit_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "runs", "wide", "norm=batch", 0, [0.1, 0.2])
    noisy(directory, snapshots=60, layers=1, units=400)
    with pytest.raises(UserError, match=r"wide/norm=batch/seed=0: found [\d,]+ bytes .* at most 100,000"):
        publish.publish(tmp_path / "runs", tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_publishing_twice_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 0
    first = tree(place)
    assert capsys.readouterr().out.count("new ") == 4
    assert run(place) == 0
    assert tree(place) == first
    assert capsys.readouterr().out.count("unchanged ") == 4


def test_what_was_cut_off_can_be_typed_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    published = place / "published"
    with monkeypatch.context() as older:
        older.setattr(publish, "DIGITS", 6)
        older.setattr(publish, "draw", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(place)
    assert run(place) == 0
    assert verify.altered_records(published) == []
    with monkeypatch.context() as between:
        between.setattr(verify, "sign", cut_off)  # between a run and its line in the manifest
        with pytest.raises(KeyboardInterrupt):
            publish.publish(place / "runs", place / "other")
    assert verify.altered_records(place / "other") != []
    publish.publish(place / "runs", place / "other")
    assert verify.altered_records(place / "other") == []
    promote, done = publish.promote, []

    def one(promotion: publish.Promotion) -> None:
        if done:
            raise KeyboardInterrupt
        promote(promotion)
        done.append(promotion)

    with monkeypatch.context() as short:
        short.setattr(publish, "promote", one)
        with pytest.raises(KeyboardInterrupt):
            publish.again(published)
    assert len(done) == 1
    assert run(place, "--again") == 0
    assert verify.altered_records(published) == []
    told = [(records.read_run_json(path) or {})["published"]["digits"] for path in records.run_directories(published)]
    assert told == [3] * 4


def test_the_same_numbers_at_another_time_are_the_same_run(place: Path) -> None:
    promoted(place)
    first = tree(place / "published")
    path = place / "runs/laptop/fig1_mnist/norm=batch/seed=1"
    record = json.loads((path / "run.json").read_text())
    records.write_run_json(path, {**record, "seconds": 99.0, "started": "2027-01-01T00:00:00+00:00"})
    assert promoted(place) == ["unchanged"] * 4
    assert tree(place / "published") == first
    summary = record["summary"] | {"seconds_per_step": 0.5}
    records.write_run_json(path, {**record, "summary": summary})
    assert promoted(place) == ["unchanged"] * 4
    records.write_run_json(path, {**record, "summary": summary | {"error": 0.5}})  # of a measure that was mended, say
    assert promoted(place, replace=True).count("replaced") == 1


def test_publishing_signs_what_it_publishes_and_nothing_that_was_altered(place: Path, capsys) -> None:
    assert run(place) == 0
    page = (place / "README.md").read_text()
    altered = place / "published/laptop/fig1_mnist/norm=none/seed=1/run.json"
    altered.write_text(altered.read_text().replace("completed", "diverged"))
    write_run(place / "runs", "fig1_rate", "norm=none,optimizer.rate=0.1", 100, [0.1, 0.2])
    assert run(place, "fig1_rate") == 2
    assert "norm=none/seed=1/run.json" in capsys.readouterr().err
    assert (place / "README.md").read_text() == page
    manifest = (place / "published" / verify.MANIFEST).read_text()
    assert "fig1_rate" in manifest
    assert records.digest(altered) not in manifest


def test_another_run_is_put_in_place_only_when_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promoted(place)
    first = tree(place / "published")
    figure_1(place / "runs", seeds=1, lift=0.01)
    assert run(place) == 2
    error = capsys.readouterr().err
    assert "norm=batch/seed=0: found another run published" in error
    assert "1 of 4 refused" in error
    assert tree(place / "published") == first
    assert promoted(place, replace=True) == ["replaced", "unchanged", "unchanged", "unchanged"]
    path = "laptop/fig1_mnist/norm=batch/seed=0/curves.jsonl"
    assert records.unpacked(place / "published" / f"{path}.xz") == (place / "runs" / path).read_bytes()
    assert not list((place / "published").rglob(".publish*"))


@pytest.mark.parametrize("published", [True, False])
def test_a_record_that_could_not_be_replaced_stands_as_it_stood(
    tmp_path: Path, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old record has been put aside when the new one cannot take its place."""
    write_run(tmp_path / "runs", "s", "norm=none", 0, [0.1, 0.2])
    if published:
        promoted(tmp_path)
        write_run(tmp_path / "runs", "s", "norm=none", 0, [0.1, 0.3])
    before, rename = tree(tmp_path), os.rename

    def full(old: Path, new: Path) -> None:
        if old.name == "new":
            raise OSError(28, "No space left on device")
        rename(old, new)

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", full)
        with pytest.raises(UserError, match="No space left"):
            promoted(tmp_path, replace=True)
    assert tree(tmp_path) == before
    assert not list((tmp_path / "published").rglob(".publish*"))
    assert promoted(tmp_path, replace=True) == ["replaced" if published else "new"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "curves.jsonl").write_text("{}\n"), "another content"),
        (lambda d: (d / "activations.jsonl").unlink(), "no file"),
        (lambda d: (d / "run.json").write_text("{"), "run.json: found"),
        (lambda d: os.rename(d, d.with_name("seed=7")), "expected that of its own path"),
    ],
)
def test_a_damaged_run_is_refused_and_none_is_published(place: Path, damage, says: str, capsys) -> None:
    damage(place / "runs/laptop/fig1_mnist/norm=batch/seed=1")
    assert run(place) == 2
    assert says in capsys.readouterr().err
    assert not (place / "published").exists()
    assert (place / "README.md").read_text() == MARKERS


def test_failed_runs_need_asking_for_and_dirty_code_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(MARKERS)
    write_run(tmp_path / "runs", "adhoc", "norm=none", 0, [0.1, 0.2], status="failed", dirty=True)
    assert run(tmp_path) == 2
    assert "--failed" in capsys.readouterr().err
    assert run(tmp_path, "--failed") == 0
    assert "uncommitted changes" in capsys.readouterr().out


def test_an_unknown_study_and_an_unmarked_readme_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "fig1_mnits") == 2
    assert "did you mean 'fig1_mnist'?" in capsys.readouterr().err
    (place / "README.md").write_text("no markers\n")
    assert run(place) == 2
    assert not (place / "published").exists()


def test_what_follows_from_the_records_is_written_with_them(place: Path) -> None:
    published = place / "published"
    old = published / "laptop/fig1_mnist/figures/response.csv.gz"  # of a figure that these records do not give
    old.parent.mkdir(parents=True)
    old.write_text("")
    assert run(place) == 0
    assert not old.exists()
    names = {path.name for path in (published / "laptop/fig1_mnist/figures").iterdir()}
    assert {"fig1a.svg", "fig1a.csv", "fig1bc.svg", "layers.csv"} <= names
    assert "fig1-higher" in (place / "README.md").read_text()
    assert (place / "README.md").read_text().startswith("before\n")
    assert verify.altered_records(published) == []
    assert verify.different_pages(published, place / "README.md", load_ledger()) == []


def test_units_stay_where_a_claim_reads_them_and_else_with_the_lowest_seed(tmp_path: Path) -> None:
    for study in ("fig1_mnist", "sensitivity_mnist", "ablation_affine_mnist"):
        for seed in (1, 2):
            noisy(write_run(tmp_path / "runs", study, "norm=batch", seed, [0.1, 0.2]), snapshots=2, layers=2, units=3)
    publish.publish(tmp_path / "runs", tmp_path / "published")
    kept = {}
    for directory in records.run_directories(tmp_path / "published"):
        rows = list(records.read_rows(directory / "activations.jsonl"))
        record = records.read_run_json(directory)
        assert record is not None
        kept[directory.parts[-3], record["seed"]] = any("units" in row for row in rows)
        assert record["published"]["units"] is kept[directory.parts[-3], record["seed"]]
    assert [study for study, whole in kept.items() if not whole] == [("ablation_affine_mnist", 2)]


def test_what_is_published_can_be_compacted_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(publish, "DIGITS", 6)
        older.setattr(publish, "claimed_units", lambda study: True)
        for seed in range(2):
            more = {"units": 5, "probes": 4, "layers": 3}
            write_run(place / "runs", "ablation_affine_mnist", "norm=batch", seed, [0.1, 0.5], **more)
        promoted(place)
    before = {path: list(records.read_rows(path / "activations.jsonl")) for path in
              records.run_directories(place / "published")}  # fmt: skip
    verify.sign(place / "published", [])
    assert run(place, "--again") == 0
    for directory, rows in before.items():
        record = records.read_run_json(directory)
        assert record is not None
        now = list(records.read_rows(directory / "activations.jsonl"))
        dropped = "units" in rows[-1] and directory.parts[-3] == "ablation_affine_mnist" and directory.name == "seed=1"
        for old, new in zip(rows, now, strict=True):
            assert new.get("histogram") == old.get("histogram")
            slim = publish.slimmed(old)
            assert (new["mean"], new["percentiles"]) == (slim["mean"], slim["percentiles"])
            assert new.get("units") == (None if dropped else publish.rounded(old.get("units")))
        assert record["published"]["digits"] == 3 or now == rows
    assert verify.altered_records(place / "published") == []
    # It is the same run still: publishing it once more leaves it as it stands.
    first = tree(place / "published")
    assert promoted(place) == ["unchanged"] * len(before)
    assert publish.again(place / "published") == 0
    assert tree(place / "published") == first


def test_histograms_that_were_thinned_are_not_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps them at every second probe today thins what kept more, and brings nothing back where there is less."""
    left = {1: 2, 2: 2, 4: 4, 0: 0}
    for kept in left:
        write_run(tmp_path / "runs", f"kept_{kept}", "norm=none", 0, [0.1, 0.2], probes=6, layers=1)
        with monkeypatch.context() as older:
            older.setattr(publish, "EVERY", kept)
            publish.publish(tmp_path / "runs", tmp_path / "published", [f"kept_{kept}"])
    assert publish.again(tmp_path / "published") == 1
    for kept, every in left.items():
        directory = tmp_path / f"published/laptop/kept_{kept}/norm=none/seed=0"
        record = records.read_run_json(directory)
        assert record is not None
        assert record["published"]["histogram_every"] == every
        steps = {row["step"] for row in records.read_rows(directory / "activations.jsonl") if "histogram" in row}
        assert steps == ({*range(0, 600, 100 * every), 500} if every else set())


PUBLISHED = verify.ROOT / "results/published"
DRAWN = sorted(folder.parent.relative_to(PUBLISHED) for folder in PUBLISHED.glob("*/*/figures"))


def said(path: Path) -> tuple[list[str], list[float]]:
    """Return the words and the numbers of a figure or its table, without pictures and names made of coordinates."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    text = re.sub(r"base64,[^\"]*|#?\b[a-z][0-9a-f]{10}\b", "", text)
    parts = re.split(r"((?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]\d+)?)", text)
    return parts[::2], [float(number) for number in parts[1::2]]


@pytest.mark.slow
@pytest.mark.parametrize("study", DRAWN, ids=str)
def test_a_published_figure_is_what_its_records_draw_today(study: Path, tmp_path: Path) -> None:
    """To a tenth of a point and the last digit of a table, which another processor may round otherwise."""
    (tmp_path / study).mkdir(parents=True)
    for arm in {*(PUBLISHED / study).iterdir()} - {PUBLISHED / study / "figures"}:
        (tmp_path / study / arm.name).symlink_to(arm)
    publish.draw(tmp_path, [(study.parts[0], study.parts[1])])
    drawn, published = tmp_path / study / "figures", PUBLISHED / study / "figures"
    names = sorted(path.name for path in drawn.iterdir())
    assert names == sorted(path.name for path in published.iterdir())
    for name in names:
        words, numbers = said(drawn / name)
        published_words, published_numbers = said(published / name)
        assert words == published_words, name
        assert numbers == pytest.approx(published_numbers, rel=1e-3, abs=0.11 if name.endswith("svg") else 0), name


@pytest.mark.parametrize(
    ("where", "why"),
    [("file/published", "Not a directory"), ("/proc/x", "No such file or directory"), ("full", "File too large")],
)
def test_a_place_that_cannot_be_written_is_one_line_and_runs_stay(
    place: Path, where: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").write_text("")
    paths = ["--from", str(place / "runs"), "--readme", str(place / "README.md")]
    before = {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()}
    with no_room():
        assert publish.main([*paths, "--to", str(place / where)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(str(place / where))
    assert f"found '{why}', expected " in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in (place / "runs").rglob("*") if path.is_file()} == before
    assert not list(place.rglob(".publish-*"))


def test_pages_that_cannot_be_written_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 0
    readme = (place / "README.md").read_text()
    capsys.readouterr()
    with no_room():
        assert run(place) == 2
    expected = "expected room to write; free some space or mend --to or --readme"
    assert capsys.readouterr().err == (
        f"{place / 'published'} or {place / 'README.md'}: found 'File too large', {expected}\n"
    )
    assert (place / "README.md").read_text() == readme
    there = ["--from", str(place / "runs"), "--to", str(place / "published")]
    assert publish.main([*there, "--readme", str(place)]) == 2
    assert "expected the page with the scoreboard; mend --readme" in capsys.readouterr().err
