# The suite's commands. `make` alone replicates Figures 1 to 3; `make help` lists everything.
SCALE ?= laptop
STUDIES := $(sort $(basename $(notdir $(wildcard configs/experiment/*.yaml))))
REPLICATED := exact architecture fig1_mnist fig2_inception
PY := .venv/bin/python
export PYTHONWARNINGS ?= default

# SEEDS=5 is seeds 0 to 4; STEPS=4000 another budget; ARGS=... any further override.
ifneq ($(SEEDS),)
ifneq ($(shell echo '$(SEEDS)' | grep -Ex '[1-9][0-9]*'),$(SEEDS))
$(error found SEEDS=$(SEEDS), expected a whole number above 0 (5 is seeds 0 to 4); others are ARGS=seed=3,4)
endif
endif
# RESULTS=... is where your runs lie, for whatever writes or reads them; ARGS=machine.results=... says it as well.
RESULTS ?= $(or $(patsubst machine.results=%,%,$(lastword $(filter machine.results=%,$(ARGS)))),results/runs)
# $(call own,--root=) is --root=RESULTS, and empty where that is results/runs, which every command knows.
own = $(if $(filter-out results/runs,$(RESULTS)),$1'$(RESULTS)')
both = $(if $(call own),--root results/published $(call own,--root=))
overrides = scale=$(SCALE) $(if $(SEEDS),'seed=range($(SEEDS))') $(if $(STEPS),steps=$(STEPS)) $(call own,machine.results=) $(ARGS)
# Of ARGS, what is not for training (KEY=VALUE): a study and its report may be made in one command.
options = $(foreach word,$(ARGS),$(if $(filter -%,$(word)),$(word),$(if $(findstring =,$(word)),,$(word))))

.DEFAULT_GOAL := replicate
# One target after the other, whatever -j says: a sweep takes all cores by itself (JOBS=n: so many of them).
.NOTPARALLEL:
.PHONY: help setup data imagenet-prepare replicate report figures verify publish test test-faults test-mutants ablations beyond sensitivity ensemble notebooks status plan dashboard wandb-sync lint format bench lock clean exact architecture $(STUDIES)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Studies, one target each (SCALE=smoke|laptop|gpu|paper SEEDS=n STEPS=n RESULTS=folder):"
	@for study in $(STUDIES); do awk -v s=$$study 'NR == 2 {sub(/^# */, ""); printf "  %-29s %s\n", s, $$0}' configs/experiment/$$study.yaml; done

setup: .venv/ready ## make the environment in .venv (again only when the pins change)

.venv/ready: requirements.txt pyproject.toml
	@test -x $(PY) || python3 -m venv .venv
	@echo "setup: installing what requirements.txt pins into .venv (torch is large: some minutes the first time)"
	@.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt > .venv/setup.log 2>&1 \
	  || { grep -E '^ERROR|error:' .venv/setup.log | head -5; echo "setup: failed, see .venv/setup.log; 'make setup' goes on from here" >&2; exit 2; }
	@touch $@

data: setup ## fetch and verify MNIST, CIFAR-10 and Fashion-MNIST
	@$(PY) -m bn_replication.data mnist cifar10 fashion_mnist

imagenet-prepare: setup ## decode ImageNet once for SCALE=paper (SOURCE=folder with train/ and val/); goes on where it stopped
	@$(PY) -m bn_replication.data.prepare $(if $(SOURCE),--source "$(SOURCE)") $(ARGS)

replicate: setup ## train Figures 1 to 3, judge the claims, write the report
	@$(MAKE) --no-print-directory $(REPLICATED) SEEDS=$(or $(SEEDS),$(if $(filter gpu paper,$(SCALE)),,3))
	@$(MAKE) --no-print-directory report

exact architecture: setup ## (exact claims: identities and counts, decided by numerics)
exact:
	@$(PY) -m bn_replication.exact --scale $(SCALE) $(call own,--out=)
architecture:
	@$(PY) -m bn_replication.models.inception --out $(or $(call own),results/runs) --scale $(SCALE) > /dev/null

$(STUDIES): setup
	@$(PY) -m bn_replication.train -m experiment=$@ $(overrides)

ensemble: setup ## train Figure 4's six networks, evaluate one crop, 144 and all six together, print its table
	@$(MAKE) --no-print-directory fig4_ensemble
	@$(PY) -m bn_replication.ensemble --scale $(SCALE) $(if $(JOBS),--jobs $(JOBS)) $(call own,--root=) $(ARGS)

report: setup ## judge what has run and write results/report.html
	@$(PY) -m bn_replication.report $(both) $(options)

status: setup ## what has run, is running, is missing, and how long it would take
	@$(PY) -m bn_replication.status --scale $(SCALE) $(call own,--root=) $(options) $(STUDY)

plan: setup ## what SCALE=... would take, before it is launched (STUDY=... SEEDS=n STEPS=n PRICE=an hour GPUS=n TFLOPS=yours)
	@$(PY) -m bn_replication.plan --scale $(SCALE) --price "$(PRICE)" --gpus "$(GPUS)" --tflops "$(TFLOPS)" \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(STEPS),--steps $(STEPS)) $(call own,--root=) $(ARGS) $(STUDY)

notebooks: setup ## run the notebooks and render them into results/notebooks
	@$(PY) -m bn_replication.notebooks

dashboard: setup ## make the Weights & Biases workspace and report, or say what they would hold
	@$(PY) -m bn_replication.dashboard $(both)

wandb-sync: setup ## upload the offline runs of STUDY=...; typed again, it goes on
	@$(PY) -m bn_replication.dashboard --sync "$(STUDY)"

figures: setup ## draw every published figure as SVG and PNG into results/figures (ARGS="--root results/runs": your own)
	@$(PY) -m bn_replication.figures $(STUDY) $(ARGS)

publish: setup ## check the runs in RESULTS (results/runs) and promote them to results/published
	@$(PY) -m bn_replication.publish $(call own,--from=) $(options) $(STUDY)

verify: setup ## recompute every verdict and the scoreboard from the published records
	@$(PY) -m bn_replication.verify

test: setup ## run the tests (no download, about three minutes)
	@$(PY) -m pytest -q -n auto -m "not slow"

test-faults: setup ## kill, starve and interrupt the real program, run the notebooks and a browser (some ten minutes)
	@$(PY) -m pytest -q tests/faults tests/golden
	@$(PY) -m pytest -q -n auto -m slow

test-mutants: setup ## plant known faults in a copy of the package and show what caught each
	@$(PY) tests/mutants/run.py

# One make for all of them, which hands on a signal; a study that fails does not end the rest.
ablations: setup ## run every ablation study (some five hours on two cores; goes on where it stopped)
	@$(MAKE) --no-print-directory -k $(filter ablation_%,$(STUDIES))

beyond: setup ## run every study of what the field asked after the paper (about an hour and a half on two cores; goes on where it stopped)
	@$(MAKE) --no-print-directory -k $(filter beyond_%,$(STUDIES)) bn_rate own_best_rate

sensitivity: setup ## does an answer hang on a value the paper leaves open? (about two hours on two cores; goes on where it stopped)
	@$(MAKE) --no-print-directory -k $(filter sensitivity_%,$(STUDIES))

# `make ablation-affine` is every study of that name: ablation_affine and ablation_affine_mnist.
ablation-%: setup
	@$(MAKE) --no-print-directory $(or $(filter ablation_$(subst -,_,$*)%,$(STUDIES)),$(error found no study ablation_$*, expected one that `make help` lists))

lint: setup ## ruff and the type checker
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/basedpyright --level error

format: setup ## let ruff format and fix what it can
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

bench: setup ## measure speed against named peers, as ratios in one process run; prints, and writes benchmarks/results
	@for each in benchmarks/[a-z]*.py; do $(PY) $$each || exit; done

lock: ## compile requirements.txt again from pyproject.toml (needs uv)
	@{ echo '# Every pin, compiled from pyproject.toml by `make lock`; the last line is the project itself.'; \
	  uv pip compile --quiet --python 3.11 --extra dev --no-header --no-annotate pyproject.toml; echo '-e .'; } > requirements.new
	@mv requirements.new requirements.txt

clean: ## remove the environment and caches; runs and data stay
	rm -rf .venv .pytest_cache .ruff_cache
