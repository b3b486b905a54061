# The two commands of the README are `make demo` and `make test`.
# uv is used where it is installed; where it is missing, pip fetches it into .venv-uv.

UV := $(shell command -v uv 2>/dev/null || echo .venv-uv/bin/uv)
DEMO_CONFIG := s1_compute_all_features/demo_model/demo_configurations.json

.PHONY: demo test test-browser test-slow check audit format install clean

install: $(if $(findstring .venv-uv,$(UV)),$(UV))
	$(UV) sync

.venv-uv/bin/uv:
	python3 -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

demo: install
	$(UV) run --no-sync python s1_compute_all_features/build_demo_model.py
	$(UV) run --no-sync python run_pipeline.py --trait dishonesty --config $(DEMO_CONFIG)

test: install
	$(UV) run --no-sync pytest -rs -m "not slow and not gpu and not network"

test-browser: install
	REQUIRE_BROWSER=1 $(UV) run --no-sync pytest -m browser

test-slow: install
	$(UV) run --no-sync pytest -m "slow and not gpu and not network"

check: install
	$(UV) run --no-sync ruff check .
	$(UV) run --no-sync ruff format --check .
	$(UV) run --no-sync mypy

audit: install
	$(UV) export --quiet --frozen --no-emit-project --format requirements-txt --output-file .venv/audit.txt
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes --requirement .venv/audit.txt

format: install
	$(UV) run --no-sync ruff check --fix .
	$(UV) run --no-sync ruff format .

clean:
	rm -rf .venv .venv-uv .pytest_cache .ruff_cache .mypy_cache s1_compute_all_features/demo_model
