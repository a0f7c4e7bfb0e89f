"""``python -m pyselfextend``: the same as the command ``pyselfextend``."""

import sys

from .cli import main

sys.exit(main())
