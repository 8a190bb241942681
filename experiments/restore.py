"""``python -m experiments.restore`` is ``diffjax restore``."""

import sys

from diffjax.cli.restore import main

if __name__ == "__main__":
    sys.exit(main())
