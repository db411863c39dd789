"""The programs of the recipe's local/ as modules, for its tests."""

import importlib
import sys
from pathlib import Path

LOCAL = Path(__file__).parents[1] / "egs2" / "slit" / "slit1" / "local"


def local(name):
    """Import a module of local/."""
    if str(LOCAL) not in sys.path:  # stays there: worker processes look for it, too
        sys.path.insert(0, str(LOCAL))
    return importlib.import_module(name)
