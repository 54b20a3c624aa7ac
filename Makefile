# Everything a developer or CI runs. Each target sets up the environment when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-training test-slow check format train-embedded eval-embedded clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[local,hf,synth,ray,train,eval,serve,litellm,ui]' --group dev
	touch $@

# The smallest installation that runs the demo: no torch.
demo:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(STAMP) || $(BIN)/python -c 'import vlmguard, xllamacpp, rapidocr' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local]'
	$(BIN)/vlmguard demo

# Many tests drive real processes and servers: one that fails has a second chance, and is listed as
# RERUN, to be mended.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --reruns 1 -r fEsR

# The embedded model learns to judge: a small set of its own, adapter, GGUF, llama.cpp. Minutes.
test-training: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/training/test_embedded.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vlmguard data check datasets/contrast

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The weights of the embedded rewriter: an hour on two quiet cores, and resumed after a kill.
ADAPTER := src/vlmguard/rewriting/adapters/smollm2
RUN := runs/smollm2-cpu
train-embedded: $(STAMP)
	test -e $(RUN)/adapter/vlmguard.json || $(BIN)/vlmguard train recipes/smollm2-cpu.yaml \
		--out $(RUN) $$(test -d $(RUN)/checkpoints && echo --resume)
	mkdir -p $(ADAPTER)
	cp $(RUN)/adapter/adapter.gguf $(RUN)/adapter/vlmguard.json $(RUN)/adapter/README.md $(ADAPTER)

# The bars of the embedded rewriter on the development slices, in DATA.
DATA ?= ../shared/data
eval-embedded: $(STAMP)
	$(BIN)/python benchmarks/verdicts.py --data $(DATA) --rewriter smollm2

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
