"""``python -m spcl_fast COMMAND`` is ``spcl-fast COMMAND``, as torchrun starts it."""

import sys

from spcl_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
