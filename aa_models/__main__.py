"""`python -m aa_models`: the command line without the installed script."""
import sys

from aa_models.cli.main import main

sys.exit(main())
