"""Writes the tables and numbers of README.md and experiments/results/README.md: ``python -m experiments.record``.

Both pages are text with marks (experiments/tools/pages.py says which), and what stands between the marks comes from the JSON
files in experiments/results. With NAME, and a VIEW: shows a table of one result and writes nothing.
"""

from __future__ import annotations

import sys

from .tools.pages import refresh, written
from .tools.records import read, write
from .tools.study import Parser, UserError, render, run

__all__ = ["main", "read", "refresh", "write"]


def main(argv=None) -> int:
    parser = Parser("experiments.record", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a result: a file of experiments/results")
    parser.add_argument("view", nargs="?", metavar="VIEW", help="one of its tables (default: the first)")
    parser.add_argument("--folder", help="where results are (default: the checkout's experiments/results, else ./results)")
    options = parser.parse(argv)
    if options.name:
        from .tools import views

        record = read(options.name, options.folder)
        print(f"{record['command']}\nviews: {', '.join(views.names(record))}\n\n{render(views.rows(record, options.view))}")
        return 0
    for page in written():
        try:
            page.write_text(refresh(page.read_text(), options.folder))
        except OSError as error:
            raise UserError(f"{page} cannot be written ({error.strerror})") from None
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
