"""A driver of before there was a bound of translated code. Usage: unbounded_driver.py serve ..."""

from __future__ import annotations

import sys

from vmdriver.cli.main import main
from vmdriver.lifecycle.launch import translation

translation.MOST_MIB = None  # type: ignore[assignment]
sys.exit(main())
