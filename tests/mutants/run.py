"""``python tests/mutants/run.py``: plant known faults, one at a time, in a copy of the package; do the tests notice?

Each mutant is one edit of one file. The tests named beside it run on the copy; the table says which of them failed
first. The command fails if a mutant survives, if an edit no longer fits the code, or if the tests fail on the copy
before anything is planted. Words on the command line pick mutants by a part of their names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "configs", "experiments", "tests", "pyproject.toml", "README.md")


class Mutant(NamedTuple):
    """What goes wrong, the file below src/bn_replication, the edit, and the tests that should notice."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


LOOP, RUNNER = "tests/test_loop.py", "tests/test_runner.py"
RESUME = f"{RUNNER} -k stopped_and_resumed"
MUTANTS = [
    # --- the method
    Mutant("biased population variance", "norms.py", "variances + var * (m / (m - 1))", "variances + var",
           "tests/test_population.py"),
    Mutant("biased running variance", "norms.py", "lerp_(var * (m / (m - 1)), weight)", "lerp_(var, weight)",
           "tests/test_norms.py"),
    Mutant("unbiased variance in a batch", "norms.py", ".square().mean(_axes(x))",
           ".square().sum(_axes(x)) / (x.numel() // x.shape[1] - 1)", "tests/test_norms.py"),
    Mutant("inverted momentum", "norms.py", "lerp_(mean, weight)\n        # biased",
           "lerp_(mean, 1 - weight)\n        # biased", "tests/test_norms.py"),
    Mutant("statistics outside the gradient", "norms.py",
           "grad_mean = -grad_x_hat.sum(axes) / std + grad_var", "grad_mean = grad_var", "tests/test_norms.py"),
    Mutant("BN after the nonlinearity, MLP", "models/mlp.py", 'if placement == "after":', 'if placement == "before":',
           "tests/test_mlp.py"),
    Mutant("BN after the nonlinearity, Inception", "models/layers.py", 'if placement == "after":',
           'if placement == "before":', "tests/test_inception.py"),
    Mutant("frozen gamma", "norms.py",
           "        super().__init__(num_features, eps, momentum, affine)\n\n    @property",
           "        super().__init__(num_features, eps, momentum, affine)\n"
           "        self.weight is not None and self.weight.requires_grad_(False)\n\n    @property",
           f"{LOOP} tests/test_norms.py"),
    Mutant("weight decay on gamma and beta", "build.py", "decay if options.l2_on_norm else 0.0", "decay",
           "tests/test_knobs.py -k weight_decay"),
    # --- training and measuring
    Mutant("shuffled held-out labels", "inputs.py", "self.plain(images, rows), images.labels[rows]",
           "self.plain(images, rows), images.labels[rows].roll(1)", f"{LOOP} {RUNNER}"),
    Mutant("shuffled labels", "inputs.py", "format=torch.channels_last), images.labels[indices]",
           "format=torch.channels_last), images.labels[indices].roll(1)", LOOP),
    Mutant("evaluation in train mode", "evaluate.py", "    model.eval()\n", "    model.train()\n", LOOP),
    Mutant("test images trained on", "data/images.py", "held_out, held_out_name = test, \"test\"",
           "train, held_out, held_out_name = test, test, \"test\"", "tests/test_data_images.py"),
    Mutant("the next step's rate", "loop.py", "pace = rate(step)", "pace = rate(step + 1)", LOOP),
    Mutant("gradients that pile up", "graphs.py", "        self.optimizer.zero_grad(set_to_none=True)\n", "", LOOP),
    Mutant("the same dropout mask each step", "loop.py", 'stream_seed(seed, "dropout", step, world.rank)',
           'stream_seed(seed, "dropout", 0, world.rank)', LOOP),
    Mutant("measured a step late", "runner.py", "if step in self.evaluated:", "if step - 1 in self.evaluated:",
           f"{LOOP} {RUNNER}"),
    Mutant("a meter that is never emptied", "loop.py", "self.loss, self.correct, self.examples = 0.0, 0, 0", "pass",
           LOOP),
    Mutant("probes move the running averages", "probes.py",
           "with evaluating(self.model), batch_statistics(self.model), last_noise(self.model):",
           "with __import__('torch').no_grad():", f"{RUNNER} -k watching"),
    # --- resuming
    Mutant("momentum lost on resume", "runner.py", 'self.optimizer.load_state_dict(state["optimizer"])', "pass",
           RESUME),
    Mutant("running averages lost on resume", "runner.py", 'self.model.load_state_dict(state["model"])',
           'self.model.load_state_dict({k: v for k, v in state["model"].items() if "running" not in k}, strict=False)',
           RESUME),
    Mutant("training loss lost on resume", "runner.py", 'vars(self.meter).update(state["meter"])', "pass", RESUME),
    Mutant("rows doubled on resume", "runner.py", 'file.truncate(state["offsets"][path.name] if state else 0)', "pass",
           f"{RUNNER} -k doubled"),
    Mutant("a damaged checkpoint taken for sound", "checkpoint.py",
           "if hashlib.sha256(payload).digest() == recorded:", "if recorded:", f"{RUNNER} -k damaged"),
    Mutant("pickles trusted", "checkpoint.py", "map_location=device, weights_only=True)",
           "map_location=device, weights_only=False)",
           "tests/faults/test_resume.py -k would_run_code"),
    Mutant("files written in place", "records.py", "    handle, name = tempfile.mkstemp(",
           "    path.write_bytes(content[:9])\n    handle, name = tempfile.mkstemp(",
           "tests/faults/test_kill.py -k between"),
    Mutant("any class taken", "build.py", "if module not in ALLOWED[group]:", "if not module:",
           "tests/faults/test_resume.py -k outside_the_list"),
    Mutant("Glorot's fan-out of joined convolutions", "models/inception.py", "fan_in + width * reached",
           "fan_in + len(module.weight) * reached", "tests/test_inception.py -k glorot"),
    # --- the judge
    Mutant("seeds unpaired", "claims.py", "for seed in seeds]\n        for role in arms",
           "for seed in (seeds if role == 'control' else seeds[::-1])]\n        for role in arms",
           "tests/test_claims.py"),
    Mutant("a censored run dropped", "claims.py", "seeds = sorted(whole)\n",
           "seeds = sorted(s for s in whole if all(m.low == m.high for r in arms if r != 'target' for m in "
           "[_measure(entry, r, {q: g[s] for q, g in arms.items()}, scale)]))\n", "tests/test_claims.py"),
    Mutant("a censored run taken for one that got there", "claims.py",
           "math.inf if reached.censored else reached.step", "reached.step", "tests/test_claims.py"),
    Mutant("a diverged run dropped", "claims.py", 'if run["status"] != "failed"]', 'if run["status"] == "completed"]',
           "tests/test_claims.py"),
    Mutant("a crossing read a row late", "metrics.py", "    i = hits[0]\n",
           "    i = min(hits[0] + 1, len(at) - 1)\n", "tests/test_metrics.py"),
    Mutant("the untrained net counted as best", "metrics.py", "keep = (at > 0) &", "keep = (at >= 0) &",
           "tests/test_metrics.py"),
    Mutant("no correction for many claims", "stats.py", "level = alpha / (len(p_values) - rank)", "level = alpha",
           "tests/test_stats.py tests/test_claims.py"),
    Mutant("a gap read past the common loss", "metrics.py", "other[before] + share * (other[row] - other[before])",
           "other[row]", "tests/test_metrics.py"),
    Mutant("altered records signed with the others", "verify.py", "if anew is None or not signed.exists():", "if True:",
           "tests/test_verify.py"),
    Mutant("altered curves judged", "records.py", "digest(content) != signed:", "False:",
           "tests/test_report.py -k damaged"),
    Mutant("a rule changed unseen", "verify.py", "if stored not in allowed[name]:",
           "if False:", "tests/test_verify.py"),
    # --- what is measured, and kept
    Mutant("probes' layers under running averages", "probes.py",
           "            with evaluating(self.model), batch_statistics(self.model), last_noise(self.model):",
           "            with evaluating(self.model), last_noise(self.model):",
           "tests/test_measured.py -k algorithm_1"),
    Mutant("the population's statistics are running ones", "measures.py",
           "frozen(model, population_statistics(model, self.inputs.after_training(batches)))", "frozen(model, {})",
           "tests/test_measured.py -k every_statistics"),
    Mutant("the cost of a step swapped with BN's", "measures.py", "own, batch = seconds_per_step",
           "batch, own = seconds_per_step", "tests/test_measured.py -k cost"),
    Mutant("censored runs decide by their scatter", "stats.py", "if tuple(lows) != tuple(highs):", "if False:",
           "tests/test_stats.py"),
    Mutant("a seed timed to another's plain net", "figures/frames.py", "target, frame = targets.get(row.seed, np.nan)",
           "target, frame = max(targets.values())", "tests/test_figures_seeds.py"),
    Mutant("a record lost where it cannot be replaced", "publish.py", "                os.rename(old, target)\n",
           "                pass\n", "tests/test_publish.py -k could_not_be_replaced"),
]  # fmt: skip


def tests_say(copy: Path, selection: str) -> tuple[int, str]:
    """Run a selection of the tests on the copy; return pytest's exit code and the first failure, or its last words."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *_words(selection)]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1800)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1].removeprefix("tests/") if failed else "".join(last)


def _words(selection: str) -> list[str]:
    files, _, expression = selection.partition(" -k ")
    return [*files.split(), *(["-k", expression] if expression else [])]


def main(picked: list[str]) -> int:
    mutants = [m for m in MUTANTS if not picked or any(word in m.fault for word in picked)]
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(ROOT / name, copy / name)
        for selection in sorted({mutant.tests for mutant in mutants}):
            code, said = tests_say(copy, selection)
            if code:
                print(f"the tests fail on the code as it is: {selection}: {said}")
                return 1
        print(f"{'planted fault':<45} {'seconds':>7}  caught by")
        for mutant in mutants:
            file = copy / "src" / "bn_replication" / mutant.file
            sound = file.read_text()
            began = time.monotonic()
            if sound.count(mutant.old) != 1:
                verdict = f"NOT PLANTED: its place is {sound.count(mutant.old)} times in {mutant.file}"
                faults += 1
            else:
                file.write_text(sound.replace(mutant.old, mutant.new))
                code, verdict = tests_say(copy, mutant.tests)
                file.write_text(sound)
                if code != 1:  # 0: all passed; above 1: no test ran
                    verdict, faults = f"SURVIVED: {verdict}", faults + 1
            print(f"{mutant.fault:<45} {time.monotonic() - began:>7.1f}  {verdict}", flush=True)
    print(f"{len(mutants) - faults} of {len(mutants)} caught")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
