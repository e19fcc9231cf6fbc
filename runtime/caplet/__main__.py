"""`python -m caplet` is the `caplet` command."""

import sys

from caplet.cli import main

if __name__ == "__main__":
    sys.exit(main())
