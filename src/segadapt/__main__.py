"""`python -m segadapt`."""

import sys

from segadapt.cli import main

sys.exit(main())
