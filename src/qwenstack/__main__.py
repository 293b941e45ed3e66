"""`python -m qwenstack` is the `qwenstack` command."""

import sys

from qwenstack.cli.app import main

sys.exit(main())
