#!/bin/sh
# Makes .venv: finds a Python, and has tools/install.py fetch the exact versions of constraints.txt into it, which writes
# .venv/installed last of all.
# Run by the Makefile from the top of the repository. One line on standard error when it cannot go on.
set -u
LOW=3.11 HIGH=3.13

stop() { echo "llmbook: $*" >&2; exit 1; }

fits() { # is "$1" a Python of the right age?
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

find_python() {
    for p in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if fits "$p"; then echo "$p"; return; fi
    done
}

none_found() {
    for p in ${PYTHON:-python3 python}; do
        v=$(version "$p") && [ -n "$v" ] &&
            stop "expected Python $LOW to $HIGH, found $v ($p): install one of these, or name it: make PYTHON=/path/to/python$HIGH"
    done
    stop "expected Python $LOW to $HIGH, found none${PYTHON:+ at $PYTHON}: install one (python.org, or your system's packages), or name it: make PYTHON=/path/to/python$HIGH"
}

make_venv() {
    rm -rf .venv
    out=$("$1" -m venv .venv 2>&1) || {
        rm -rf .venv
        case $out in
            *ensurepip*|*python3-venv*) stop "$1 cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv), then run make again" ;;
            *) stop "$1 could not make .venv: $(echo "$out" | tail -1)" ;;
        esac
    }
}

[ -f settings.ini ] || stop "run it from the top of the repository"
rm -f .venv/installed
if fits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
    [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version .venv/bin/python)" ] || {
        fits "$PYTHON" || none_found
        make_venv "$PYTHON"
    }
else
    py=$(find_python)
    [ -n "$py" ] || none_found
    make_venv "$py"
fi

echo "llmbook: installing into .venv with Python $(version .venv/bin/python)"
exec .venv/bin/python tools/install.py --index "${TORCH_INDEX:-}"
