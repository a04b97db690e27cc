# Everything below works on a fresh machine with Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICK := runs/digits
RESULTS := benchmarks/results
# Extras that the tests use; `make test EXTRAS=test,torch` adds those of PyTorch files.
EXTRAS ?= test
MINUTES ?= 30
SEED ?= 0

.PHONY: quickstart test check format docs drill bench reproduce clean

# Train, certify and attack on handwritten digits; five minutes on two cores.
quickstart: $(VENV)/digits.stamp
	$(VENV)/bin/wsjax train --config=digits --workdir=$(QUICK)
	$(VENV)/bin/wsjax certify --config=digits --workdir=$(QUICK)
	$(VENV)/bin/wsjax attack --config=digits --workdir=$(QUICK) --config.data.stride=6
	@echo
	@echo "Done. Figures and rows are in $(QUICK):"
	@ls $(QUICK)/*.png $(QUICK)/*.tsv

# All tests, and the checks of formatting, types and structure.
test: $(VENV)/$(EXTRAS).stamp check
	$(RUN) -m pytest -n auto --dist loadfile

check: $(VENV)/$(EXTRAS).stamp
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/$(EXTRAS).stamp
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Accidents at random to runs of the scripts, for MINUTES; another SEED has others. Counts
# go to benchmarks/results, and from there to docs/trust.md.
drill: $(VENV)/$(EXTRAS).stamp
	$(RUN) tests/drill.py --minutes=$(MINUTES) --seed=$(SEED) --out=$(RESULTS)/drill.jsonl

# The site, in docs/_build/html; its notebooks run on two cores in a few minutes.
docs: $(VENV)/docs.stamp
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Speed and savings, one script per claim, beside PyTorch; results go to benchmarks/results.
# DATA is the folder of the original MNIST files; AUTHORS, if given, a checkout of the code
# of the paper's authors, which needs statsmodels.
bench: $(VENV)/bench.stamp
	$(RUN) benchmarks/throughput.py $(if $(AUTHORS),--authors=$(AUTHORS)) \
	    --out=$(RESULTS)/throughput.jsonl
	$(RUN) benchmarks/throughput.py --model=resnet18_cifar --image=32,32,3 --n=50 \
	    --block-size=50 --repeats=3 --only flow_laplace power_law --memory \
	    --out=$(RESULTS)/throughput.jsonl
	$(RUN) benchmarks/network_speed.py votes --out=$(RESULTS)/network_speed.jsonl
	$(RUN) benchmarks/network_speed.py training --out=$(RESULTS)/network_speed.jsonl
	$(RUN) benchmarks/early_stopping.py --data=$(DATA) --images=200 \
	    --checkpoint=released/mnist_c0.1.safetensors --out=$(RESULTS)/early_stopping.jsonl
	$(RUN) benchmarks/early_stopping.py --data=$(DATA) --images=200 \
	    --checkpoint=released/mnist_c0.1.safetensors --radii .05 .1 .15 .2 --losses \
	    --out=$(RESULTS)/early_stopping.jsonl
	$(RUN) benchmarks/early_stopping.py --data=$(DATA) --images=200 \
	    --checkpoint=released/mnist_c0.037.safetensors --radii .02 .04 .06 .08 .1 .12 \
	    --losses --out=$(RESULTS)/early_stopping.jsonl
	$(RUN) benchmarks/scaling.py --out=$(RESULTS)/scaling.jsonl

# The paper's MNIST table from scratch; DATA is the folder of the original files.
reproduce: $(VENV)/train.stamp
	$(RUN) benchmarks/reproduce_mnist.py --data=$(DATA) --recipe=fast

$(VENV)/%.stamp: setup.cfg pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
