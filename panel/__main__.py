"""`python -m panel DATA_DIR... --port N` serves the web panel, `python -m panel export SAMPLE...
--out DIR` writes a page that needs no server."""

import sys

from experiment.errors import run_entry_point


def main() -> None:
    """Entry point. A folder of the name `export` can be served as `./export`."""
    # The server's start does not wait for what only an export needs, nor the other way round.
    if sys.argv[1:2] == ["export"]:
        from panel import export

        export.main(sys.argv[2:])
    else:
        from panel import server

        server.main()


if __name__ == "__main__":
    run_entry_point(main)
