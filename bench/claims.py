"""Computes the published claims and prints their table in Markdown.

`python -m bench.claims` prints it, `--write` renews it in docs/claims.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sim.claims.compute import compute
from sim.claims.output import markdown
from sim.claims.schema import chosen
from sim.output import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "claims.md"
BEGIN, END = "<!-- claims -->\n", "\n<!-- end claims -->"


def main() -> int:
    """Print the table; with --write also into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    results = list(compute(chosen([]), lambda name, *_: print(name, file=sys.stderr, flush=True)))
    close = sum(not result.differs for result in results)
    table = f"{len(results)} claims, {close} within 10 % or inside their range.\n\n{markdown(results)}"
    print(table)
    if asked.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        write_text(PAGE, f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
