"""Sphinx settings: `sphinx-build -W -b html docs docs/_build`."""

import re
from pathlib import Path

project = "espnet2_slit"
author = "The espnet2_slit contributors"
release = re.search(
    r'__version__ = "(.+?)"',
    (Path(__file__).parent.parent / "espnet2_slit" / "__init__.py").read_text(),
)[1]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = f"espnet2_slit {release}"
