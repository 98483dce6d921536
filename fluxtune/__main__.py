"""`python -m fluxtune` is the `fluxtune` command."""

from __future__ import annotations

import sys

from fluxtune.cli.app import main

sys.exit(main())
