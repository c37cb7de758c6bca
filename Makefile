# Thin: README.md shows the same commands without make.
PYTHON ?= python3
NAME ?= demo
BIN := .venv/bin

.PHONY: demo test bench format clean

# Train on the shipped subject, then draw it where it has never been. `make demo NAME=mine` names the run.
demo: .venv/ready
	$(BIN)/python main.py --base configs/dreambooth.yaml --name $(NAME)
	run=$$(ls -d logs/*_$(NAME) | tail -n 1) && \
	$(BIN)/python scripts/sample.py --run $$run --n 4 --out $$run/demo \
		--prompt "a drawing of [V] robot on the moon" \
		--prompt "a drawing of [V] robot wearing a crown in the snow" \
		--prompt "a drawing of a robot" && \
	echo "look first: $$run/report.html; pictures: $$run/sheet.png, $$run/demo, $$run/samples" && \
	echo "numbers:    $$run/evaluation.json and $$run/metrics.csv"

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile

# Speed and memory again, compared with what bench/speed.json has; PEER names diffusers' side.
# make bench PEER="--diffusers CHECKOUT --python PYTHON"
bench: .venv/ready
	$(BIN)/python -m bench.speed $(PEER)

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
