"""``python -m experiments.train`` is ``diffjax train`` that knows the configurations of this folder too."""

import sys

from diffjax.cli.train import main
from experiments import configs

if __name__ == "__main__":
    sys.exit(main(configs=configs.load()))
