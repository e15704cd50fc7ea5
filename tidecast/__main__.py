"""`python -m tidecast` is `tidecast`."""

import sys

from tidecast.service.cli import main

if __name__ == "__main__":
    sys.exit(main())
