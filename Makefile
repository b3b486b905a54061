# The two commands of the README are `make demo` and `make test`.
# uv is used where it is installed; where it is missing, pip fetches it into .venv-uv.
# UV= (empty) takes the environment that is active, e.g. one made by pip, and installs nothing.

UV := $(shell command -v uv 2>/dev/null || echo .venv-uv/bin/uv)
RUN := $(if $(UV),$(UV) run --no-sync)
DEMO_CONFIG := s1_compute_all_features/smollm2_configurations.json
TRAIT := caring

.PHONY: demo demo-all figures test test-browser test-slow check audit format install clean

install: $(if $(findstring .venv-uv,$(UV)),$(UV))
	$(if $(UV),$(UV) sync)

.venv-uv/bin/uv:
	python3 -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

# One trait on the demonstration model: make demo TRAIT=aggression
demo: install
	$(RUN) python s1_compute_all_features/fetch_demo_model.py
	$(RUN) python run_pipeline.py --trait $(TRAIT) --config $(DEMO_CONFIG)

# The five traits, each one's best features read on the sentences of the others, all curves in one picture.
demo-all: install
	$(RUN) python s1_compute_all_features/fetch_demo_model.py
	$(RUN) python run_pipeline.py --trait all --config $(DEMO_CONFIG)

# The figures of README.md, measured anew.
figures: demo-all
	$(RUN) python docs/update_figures.py

test: install
	$(RUN) pytest -rs -m "not slow and not gpu and not network"

test-browser: install
	REQUIRE_BROWSER=1 $(RUN) pytest -m browser

test-slow: install
	$(RUN) pytest -m "slow and not gpu and not network"

check: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

audit: install
	$(UV) export --quiet --frozen --no-emit-project --format requirements-txt --output-file .venv/audit.txt
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes --requirement .venv/audit.txt

format: install
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf .venv .venv-uv .pytest_cache .ruff_cache .mypy_cache s1_compute_all_features/demo_model
