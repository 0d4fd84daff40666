"""`minilib`, with the toy chapter of `toy_sweeps`; a file, so that workers import it as well."""

import sys

import toy_sweeps

from minilib import cli

toy_sweeps.register()

if __name__ == "__main__":
    sys.exit(cli.main())
