"""Where the files of the page lie."""

from pathlib import Path

import plotly

STATIC_FOLDER = Path(__file__).parent / "static"
PLOTLY_FILE = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
