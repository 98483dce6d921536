#!/bin/sh
# Set fluxtune up on Linux, WSL or macOS: finds a Python and lets setup.py do the rest.
# --environment DIR, --torch BUILD and --dry-run are explained by --help.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

for python in python3 python python3.13 python3.12 python3.14 python3.11; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" "$here/setup.py" "$@"
    fi
done

echo 'error: no Python 3.11 or newer with its module venv was found' >&2
echo >&2
if command -v apt-get >/dev/null 2>&1; then
    echo 'hint: sudo apt-get install python3 python3-venv' >&2
elif command -v dnf >/dev/null 2>&1; then
    echo 'hint: sudo dnf install python3' >&2
elif command -v brew >/dev/null 2>&1; then
    echo 'hint: brew install python' >&2
else
    echo 'hint: install Python from https://www.python.org/downloads' >&2
fi
exit 2
