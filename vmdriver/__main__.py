"""python -m vmdriver."""

import sys

from vmdriver.cli import main

sys.exit(main())
