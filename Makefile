# tidecast. `make` alone prints what there is. Each target makes the environment it needs, in .venv, from the pins in
# requirements.txt; a later run finds it there and starts at once.
#   SECONDS=20                 how long the live part of the demo lasts (default: a minute)
#   PYTHON=python3.12          which interpreter makes .venv (default: the first that is new enough)
#   TORCH_INDEX_URL=<address>  another package index to take torch from, for a build without CUDA (a tenth of the size)

VENV := .venv
BIN := $(VENV)/bin
# A second package index: its `+cpu` builds sort above the plain release, and the pins accept them.
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
# uv unpacks torch in a quarter of pip's time, and links it from its cache the next time. A mirror that is set for pip in the
# environment is used by uv too. Where uv fails, pip is tried, since only pip reads pip.conf. uv trusts the certificates
# that the system trusts, such as those of a company's proxy.
export UV_SYSTEM_CERTS ?= 1
PIP := $(BIN)/python -m pip install --disable-pip-version-check
UV_ENV := $(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX=$(PIP_INDEX_URL)) $(if $(PIP_CERT),SSL_CERT_FILE=$(PIP_CERT))
UV := $(UV_ENV) $(BIN)/python -m uv pip install --python $(BIN)/python --index-strategy unsafe-best-match
# A test that hangs ends its process after ten minutes. pytest-xdist can wait for ever for another process in its place.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart 0
DEMO_EXTRAS := demo
DEV_EXTRAS := demo,protoc,tune,fast,otel,dev
define install
$(UV) --no-build-isolation -c requirements.txt $(1) || { echo "tidecast: uv could not; trying again with pip" >&2; \
  $(PIP) --no-build-isolation -c requirements.txt $(1); }
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo setup test test-long test-fast stress chaos bench lint types unit integration format pins audit compose-test clean

help: ## Print this
	@echo "tidecast: forecasts for streams of sensor readings, from Kafka to Kafka."; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## From nothing to live forecasts: train, start Kafka and a worker, watch for a minute (SECONDS=20: shorter)
	@$(BIN)/tidecast demo $(if $(SECONDS),--seconds $(SECONDS))

setup: $(VENV)/.dev ## The environment for working on tidecast, in .venv

test: lint $(VENV)/.dev ## Lint, types, and all tests but the long ones, on a real Kafka (PROCESSES=3: fewer at a time)
	@# Many at a time, since they wait a lot; in order, so that no broken client of an integration test disturbs a unit test.
	@echo "tidecast: types, and the tests, some on a real embedded Kafka (its jars are fetched the first time)"
	@$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & types=$$!; $(PYTEST) -n $(or $(PROCESSES),8) -m 'not long' --durations=20; tests=$$?; \
	  wait $$types; checked=$$?; cat $(VENV)/mypy.log; exit $$((tests + checked))

test-long: $(VENV)/.dev ## The long tests: storms of kills, each panel of each board, whole trainings (also a part of .ci/run)
	@$(PYTEST) -n $(or $(PROCESSES),3) -m long --durations=20

test-fast: $(VENV)/.dev ## Most tests that need neither Kafka nor a trained model: a minute
	@$(PYTEST) -n 2 -q -m 'not slow' tests/unit tests/input tests/deploy tests/docs

stress: $(VENV)/.dev ## All tests five times while every core is kept busy; says which tests failed (ROUNDS=5)
	@$(BIN)/python -m tests.stress --rounds $(or $(ROUNDS),5)

chaos: $(VENV)/.dev ## Storms of kills, and of what changes around the workers, verified; invalid records; a long run (STORMS=10 SEED=1)
	@$(BIN)/python -m tests.chaos.storm --seed $(or $(SEED),1) --storms $(or $(STORMS),10)
	@for scenario in around join promote route; do for client in confluent kafka-python; do $(BIN)/python -m tests.chaos.storm \
	  --scenario $$scenario --client $$client --seed $(or $(SEED),1) --storms $(or $(STORMS),10) || exit 1; done; done
	@$(BIN)/python -m tests.chaos.fuzz --records 100000
	@$(BIN)/python -m tests.chaos.long_run

BENCHMARKS ?= machine engine shadow metrics_cost graph memory scaling training latency restore restore_kafka recovery end_to_end
bench: $(VENV)/.dev ## All benchmarks, one after the other: about half an hour on a quiet machine (BENCHMARKS="engine latency")
	@for each in $(BENCHMARKS); do echo; echo "## benchmarks/$$each.py"; $(BIN)/python benchmarks/$$each.py || exit 1; done

lint: $(VENV)/.dev ## ruff (errors, style, format), and which room imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## mypy --strict on service and training
	@$(BIN)/mypy

unit: $(VENV)/.dev ## The tests that need no Kafka
	@$(BIN)/python -m pytest tests/unit tests/training

integration: $(VENV)/.dev ## The tests on a real embedded Kafka
	@$(BIN)/python -m pytest tests/integration

format: $(VENV)/.dev ## Put the code into ruff's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

pins: $(BIN)/python ## Bring requirements.txt up to date with pyproject.toml (UPGRADE=1: newest versions)
	@$(PIP) --quiet uv
	@grep '^#' requirements.txt > requirements.new
	@printf 'setuptools>=77\nuv\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --all-extras --no-annotate --no-header $(if $(UPGRADE),,-c requirements.txt) pyproject.toml - >> requirements.new
	@mv requirements.new requirements.txt
	@echo "tidecast: requirements.txt is made again; run make test before you keep it"

COMPOSE_CHECK := $(wildcard ../shared/compose-check/compose-check)
compose-test: $(VENV)/.dev ## The compose file on real containers: up, forecasts, a scrape, three workers, one killed, down
	@# A docker command may be there without its engine, or without the compose plugin.
	@$(BIN)/python -m tests.compose $(if $(shell docker compose ls >/dev/null 2>&1 && echo yes),,$(if $(COMPOSE_CHECK),--check $(COMPOSE_CHECK)))

audit: $(VENV)/.audit ## Known vulnerabilities of all pinned packages, and an SBOM (CycloneDX) in build/sbom.json
	@$(BIN)/python deploy/audit.py requirements.txt build/sbom.json

clean: ## Remove .venv, caches and what was built; trained models stay
	rm -rf $(VENV) build/lib build/bdist.* dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find service training tests -name __pycache__ -prune -exec rm -rf {} +

# The marks below say which extras .venv has. They are out of date when one of the two files changes that say what to install.

$(VENV)/.demo: pyproject.toml requirements.txt | $(BIN)/python
	@echo "tidecast: installing the trainer, the worker and a Java runtime for Kafka into $(VENV)"
	@echo "tidecast: only the first time; about 3 GB are fetched, most of it for torch: one to several minutes"
	@$(PIP) --quiet -c requirements.txt uv setuptools
	@$(call install,$(TORCH_INDEX) -e '.[$(DEMO_EXTRAS)]')
	@touch $@
	@echo "tidecast: installed"

$(VENV)/.dev: pyproject.toml requirements.txt | $(VENV)/.demo
	@echo "tidecast: installing the tools for tests, lint and types into $(VENV)"
	@$(call install,$(TORCH_INDEX) -e '.[$(DEV_EXTRAS)]')
	@touch $(VENV)/.demo $@
	@echo "tidecast: installed"

$(VENV)/.audit: pyproject.toml requirements.txt | $(BIN)/python
	@echo "tidecast: installing the tools for the audit into $(VENV)"
	@$(PIP) --quiet -c requirements.txt uv setuptools
	@$(call install,-e '.[audit]')
	@touch $@

# Python 3.11 or newer with its venv module. Versions with a tested set of pins are taken before newer ones.
$(BIN)/python:
	@for newest in 13 99; do for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  $$candidate -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$newest))" 2>/dev/null || continue; \
	  enough=yes; \
	  $$candidate -c "import ensurepip, venv" 2>/dev/null || continue; \
	  echo "tidecast: making $(VENV) with `$$candidate -V`"; \
	  $$candidate -m venv --clear $(VENV) && exit 0; \
	  exit 1; \
	done; done; \
	if [ -n "$$enough" ]; then \
	  echo "tidecast: this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
	else \
	  echo "tidecast: needs Python 3.11 or newer; $(if $(PYTHON),$(PYTHON) is not,none of python3 python3.13 python3.12 python3.11 is)" >&2; \
	fi; exit 1
