"""`python -m panel DATA_DIR... --port N`: serve the web panel."""

from experiment.errors import run_entry_point
from panel.server import main

if __name__ == "__main__":
    run_entry_point(main)
