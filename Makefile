# Every target makes .venv by itself. Options: ARGS='...' for `make run`, PYTHON=path, TORCH_INDEX=URL (another build of torch).
BIN := .venv/bin
STAMP := .venv/installed
ARGS ?=

.PHONY: help run test lab docs bench readme export clean FORCE

help:
	@echo "make run     the whole journey, into runs/first (ARGS='--minutes 2 --out runs/mine')"
	@echo "make test    every notebook and every test"
	@echo "make lab     JupyterLab on the notebooks"
	@echo "make docs    the site, into _docs/"
	@echo "make bench   speed, side by side with others"
	@echo "make export  after editing notebooks: package, README.md and sidebar in step with them"
	@echo "make readme  README.md from nbs/index.ipynb"
	@echo "make clean   remove what was made, except runs/"

# The stamp is written last and holds TORCH_INDEX: without it, or with another index, the installation runs again.
ifneq ($(TORCH_INDEX),)
ifneq ($(TORCH_INDEX),$(shell cat $(STAMP) 2>/dev/null))
NEW_INDEX := FORCE
endif
endif

$(STAMP): settings.ini constraints.txt setup.py pyproject.toml tools/setup.sh tools/install.py $(NEW_INDEX)
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' sh tools/setup.sh

run: $(STAMP)
	@$(BIN)/llmbook-run --out runs/first $(ARGS)

test: $(STAMP)
	@$(BIN)/python tools/check.py

# JupyterLab opens no browser in a container or over ssh, where there is none; it prints its address there. As root it wants to be told.
LAB := $(if $(filter 0,$(shell id -u)),--allow-root)
LAB += $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname))),,--no-browser)

lab: $(STAMP)
	@$(BIN)/jupyter lab nbs $(LAB) $(ARGS)

docs: $(STAMP)
	@$(BIN)/python tools/site.py

bench: $(STAMP)
	@$(BIN)/python tools/bench.py

readme: $(STAMP)
	@$(BIN)/python tools/readme.py

export: $(STAMP)
	@$(BIN)/python tools/titles.py
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python tools/outputs.py
	@$(BIN)/python tools/docstrings.py
	@$(BIN)/python tools/course.py
	@$(BIN)/python tools/sidebar.py
	@$(BIN)/python tools/readme.py

clean:
	@rm -rf .venv _docs _proc build dist *.egg-info .pytest_cache nbs/.last_checked
	@find . -name __pycache__ -type d -prune -exec rm -rf {} + ; find nbs -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
	@if [ -d runs ]; then echo "runs/ is kept: remove it yourself if you no longer need it"; fi
