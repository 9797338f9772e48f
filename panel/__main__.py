"""`python -m panel DATA_DIR... --port N` serves the web panel, `python -m panel export SAMPLE...
--out DIR` writes a page that needs no server."""

import gc
import sys

from experiment.errors import run_entry_point


def main() -> None:
    """Entry point. A folder of the name `export` can be served as `./export`."""
    # What the libraries are made of stays for good: to look through it for garbage again and again
    # while they load takes an eighth of the start. Each command loads only what it needs.
    gc.disable()
    if sys.argv[1:2] == ["export"]:
        from panel import export

        _collect_garbage_again()
        export.main(sys.argv[2:])
    else:
        from panel import server

        _collect_garbage_again()
        server.main()


def _collect_garbage_again() -> None:
    """Of what is made from now on."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    run_entry_point(main)
