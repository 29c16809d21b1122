"""`python -m fastwm` is `fastwm`, and `torchrun ... -m fastwm` many of it."""

import sys

from fastwm.cli import main

sys.exit(main())
