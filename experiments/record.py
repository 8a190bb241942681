"""Result files (experiments/results/): one JSON per run with the command that made it, and beside it its table."""

from __future__ import annotations

import json
import pathlib
import platform
import re
import sys

from diffjax.cli.tables import render

FOLDER = pathlib.Path(__file__).parent / "results"


def write(name: str, command: str, rows: list[dict], folder=FOLDER, **more) -> str:
    """Write NAME.json ({command, versions, rows, ...}) and NAME.md; returns the table."""
    import jax
    import numpy

    table = render(rows)
    record = {
        "command": command,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": numpy.__version__},
        "device": jax.devices()[0].device_kind,
        **more,
        "rows": rows,
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(f"`{command}`\n\n{table}\n")
    return table


def read(name: str, folder=FOLDER) -> dict:
    return json.loads((pathlib.Path(folder) / f"{name}.json").read_text())


TABLE = re.compile(r"(<!-- table: (\w+)(?: of ([^>]*?))? -->).*?<!-- end table -->", re.S)


def refresh(text: str, folder=FOLDER) -> str:
    """The text of a README with every table rendered anew from its result file, the command that made it above.

    A table stands between ``<!-- table: NAME -->``, or ``<!-- table: NAME of COLUMN; COLUMN -->``, and
    ``<!-- end table -->``.
    """

    def table(match):
        marker, name, columns = match.groups()
        found = read(name, folder)
        body = render(found["rows"], columns and [c.strip() for c in columns.split(";")])
        return f"{marker}\n`{found['command']}`\n\n{body}\n<!-- end table -->"

    return TABLE.sub(table, text)


def main(argv=None) -> int:
    from diffjax.cli.options import Parser

    Parser("experiments.record", "Writes the tables of experiments/results into README.md.").parse(argv)
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    readme.write_text(refresh(readme.read_text()))
    return 0


if __name__ == "__main__":
    from diffjax.cli.errors import run

    sys.exit(run(main))
