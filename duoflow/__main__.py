"""The `duoflow` command, after a look at whose packages it would run."""

import sys

from trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
