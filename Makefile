# `make demo` runs the main job, `make test` the tests; both set up what they need first. `make help` lists the rest.
PY := .venv/bin/python
PYTEST := $(PY) -m pytest

.PHONY: help
help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: setup
setup: ## System packages and the virtual environment (idempotent)
	@scripts/setup

.PHONY: lab
lab: setup ## The emulated data centre, up to play with; then: .venv/bin/opendpu lab deploy server1
	$(PY) -m opendpu.cli lab up

.PHONY: demo
demo: setup ## The main job: two bare-metal servers from cloud volumes through their DPUs; build/demo/report.json
	$(PY) -m opendpu.cli demo --output build/demo

.PHONY: test
test: setup lint test-unit test-functional test-e2e ## Everything

.PHONY: test-unit
test-unit: setup ## Under a minute, no root
	$(PYTEST) tests/unit

.PHONY: test-functional
test-functional: setup ## Real daemons, each room by itself (root)
	$(PYTEST) tests/functional tests/card

.PHONY: test-e2e
test-e2e: setup ## The whole lab (root)
	$(PYTEST) tests/e2e

.PHONY: lint
lint: setup ## ruff, mypy, import contracts, generated code in step with proto/
	.venv/bin/ruff check src tests bench examples scripts
	.venv/bin/ruff format --check src tests bench examples scripts
	.venv/bin/mypy
	.venv/bin/lint-imports
	@$(MAKE) --no-print-directory proto OUT=build/proto && \
	  for f in agent_pb2.py agent_pb2.pyi agent_pb2_grpc.py agent_pb2_grpc.pyi; do \
	    cmp build/proto/opendpu/agent/v1/$$f src/opendpu/agent/v1/$$f || { echo "run 'make proto' and commit"; exit 1; }; done

OUT ?= src
.PHONY: proto
proto: setup ## Python from proto/
	@mkdir -p $(OUT)
	@$(PY) -m grpc_tools.protoc -I proto --python_out=$(OUT) --grpc_python_out=$(OUT) --mypy_out=quiet:$(OUT) \
	  --mypy_grpc_out=quiet:$(OUT) --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc proto/opendpu/agent/v1/agent.proto

.PHONY: bench
bench: setup ## Measured ratios; build/bench/*.json and plots (root; minutes)
	@mkdir -p build/bench
	for script in bench/*.py; do $(PY) $$script --out build/bench/$$(basename $$script .py).json || exit 1; done

.PHONY: figures
figures: ## README's and docs' tables from what `make demo` and `make bench` measured
	$(PY) scripts/figures.py

.PHONY: clean
clean: ## Take the lab down and drop what was built (images are kept in their cache)
	-[ -x $(PY) ] && $(PY) -m opendpu.cli lab down
	rm -rf build
