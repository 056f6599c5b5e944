"""`python -m sam_runner` is `sam-train`."""

import sys

from sam_runner.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
