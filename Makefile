# `make run` serves the embedded model, `make test` runs the whole test suite. Both create .venv first.
# On a GPU, PyPI's torch needs driver 580 or newer; TORCH_INDEX names another index for torch alone: see docs/gpu.md.
# Without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves most of the download.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?= --model digits --host 127.0.0.1
TORCH_INDEX ?=
TEST_PROCESSES ?= $(shell expr $$(nproc) + 1)
TORCH = $(shell grep '^torch==' requirements.txt)
INSTALL_TORCH = $(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url $(TORCH_INDEX) $(TORCH))

# Otherwise every server that a test starts compiles the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test lint types imports check fuzz api-fuzz wheel kubernetes-tools peers docs ray ray-test openvino openvino-test results bench-quick soak autoscaling autoscaling-test container-test clean

run: .venv/run.stamp
	$(BIN)/python server.py $(ARGS)

# Whole files go to the next free process, in the order of tests/conftest.py: the longest first. There is one more process
# than cores, because half of a test's time is waiting: for a server's start, a deadline, a killed process.
test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 10 $(TESTS)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/actionlint -shellcheck= -pyflakes=
	$(BIN)/hadolint Dockerfile

types: .venv/dev.stamp
	$(BIN)/mypy

imports: .venv/dev.stamp
	$(BIN)/lint-imports

check: lint types imports test

fuzz: .venv/dev.stamp
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),200000) $(BIN)/python -m pytest tests/unit/decoding/test_fuzz.py

api-fuzz: .venv/dev.stamp
	API_FUZZ_EXAMPLES=$(or $(API_FUZZ_EXAMPLES),2000) API_FUZZ_S=$(or $(API_FUZZ_S),600) $(BIN)/python -m pytest tests/e2e/test_openapi.py

soak: .venv/dev.stamp
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),5)

# Closes the loop of the autoscaler, Prometheus and HAProxy, for 16 minutes. Needs Debian's packages haproxy and prometheus.
autoscaling: .venv/dev.stamp
	$(BIN)/python -m benchmarks.autoscaling $(if $(OUT),--out $(OUT))

# Its short form, two minutes, on a machine without other work.
autoscaling-test: .venv/dev.stamp
	AUTOSCALING_TESTS=all $(BIN)/python -m pytest tests/benchmarks/test_autoscaling.py

# Builds the package that `pip install` takes, in dist/.
wheel: .venv/dev.stamp
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Builds and runs the container image, also as the pod of deploy/kubernetes. Needs root and Debian's packages mmdebstrap,
# buildah, podman, runc and catatonit, for compose.yaml netavark, aardvark-dns and iptables; and kubectl, from
# `make kubernetes-tools`.
container-test: .venv/dev.stamp
	$(BIN)/python -m pytest -m container tests/container $(if $(REPORT),--container-report $(REPORT))

# Installs kubectl and helm in .venv, for the tests of the manifests.
kubernetes-tools: .venv/dev.stamp
	$(BIN)/python -m scripts.kubernetes_tools

# Makes the environments of the servers that ours is compared with.
peers: .venv/dev.stamp
	$(BIN)/python -m benchmarks.harness.peers

# Makes the environment of the tests on Ray: its own packages, and those of .venv.
ray: .venv-ray/ray.stamp

# All tests on Ray, those that take minutes too.
ray-test: .venv/dev.stamp .venv-ray/ray.stamp
	RAY_TESTS=all $(BIN)/python -m pytest tests/unit/classify tests/deploy/test_ray_serve.py tests/benchmarks/test_ray_benchmarks.py
	RAY_TESTS=all $(BIN)/python -m pytest tests/project/test_docs_examples.py -k docs/ray.md

# Makes the environment of the tests of int8 models and of benchmarks.engines: its own packages, and those of .venv.
openvino: .venv-openvino/openvino.stamp

# The tests that need OpenVINO; without it, they are skipped.
openvino-test: .venv-openvino/openvino.stamp
	.venv-openvino/bin/python -m pytest tests/unit/model/test_openvino_network.py tests/unit/quantization tests/e2e/test_quantized.py

# Reruns everything that the READMEs and docs quote, for more than two hours, and writes the tables. Needs a clean tree.
results: .venv/dev.stamp .venv-ray/ray.stamp .venv-openvino/openvino.stamp
	$(BIN)/python -m benchmarks.rerun $(BENCHMARKS)

# Each benchmark in its shortest form, to see that it runs.
bench-quick: .venv/dev.stamp .venv-ray/ray.stamp .venv-openvino/openvino.stamp
	$(BIN)/python -m benchmarks.rerun --quick $(BENCHMARKS)

# Builds the documentation site in site/, and fails on a broken link or anchor. Needs no network once .venv-docs is made.
docs: .venv-docs/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --clean

clean:
	rm -rf .venv .venv-peers .venv-ray .venv-openvino .venv-docs dist site

.venv/bin/python:
	@$(PYTHON) -m vit_api.environment.system
	$(PYTHON) -m venv .venv

# The checkout itself is installed, editable, for the command .venv/bin/vit-api.
.venv/run.stamp: requirements.txt requirements-load.txt | .venv/bin/python
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install -r requirements-load.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

.venv/dev.stamp: requirements.txt requirements-load.txt requirements-bench.txt requirements-otel.txt requirements-dev.txt | .venv/bin/python
	$(INSTALL_TORCH)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@ .venv/run.stamp

.venv-ray/ray.stamp: requirements-ray.txt requirements-ray-dev.txt | .venv/dev.stamp
	$(BIN)/python -m venv .venv-ray
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(.venv-ray/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth"
	.venv-ray/bin/python -m pip install --quiet -r requirements-ray-dev.txt
	touch $@

.venv-openvino/openvino.stamp: requirements-openvino.txt requirements-openvino-dev.txt | .venv/dev.stamp
	$(BIN)/python -m venv .venv-openvino
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(.venv-openvino/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth"
	.venv-openvino/bin/python -m pip install --quiet -r requirements-openvino-dev.txt
	touch $@

.venv-docs/docs.stamp: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@
