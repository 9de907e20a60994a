"""``python -m supple`` is the command line."""

import sys

from supple.cli import main

if __name__ == "__main__":
    sys.exit(main())
