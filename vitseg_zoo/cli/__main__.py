"""`python -m vitseg_zoo.cli`, the command `vitseg`."""

import sys

from vitseg_zoo.cli import main

sys.exit(main())
