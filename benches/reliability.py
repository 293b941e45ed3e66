"""Try the server under load, faults and hostile input; one JSON line for each row.

    python benches/reliability.py --rows L1 L2 --scale ci

`--scale long` has the full counts, as in docs/reliability.md, whose table `--write-doc` writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "serving"))

from reliability.rows import ROWS
from reliability.table import describe_machine, with_table
from reliability.verdict import SCALES, RowSkipped, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


def main() -> int:
    """Run the rows; the exit status is 0 if all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--scale", choices=SCALES, default="ci")
    parser.add_argument("--write-doc", action="store_true", help="write what was measured into docs/reliability.md")
    arguments = parser.parse_args()
    all_passed = True
    verdicts: dict[str, Verdict] = {}
    for row in arguments.rows:
        try:
            verdict = asyncio.run(ROWS[row].judge(arguments.scale))
        except RowSkipped as reason:
            print(json.dumps({"row": row, "scale": arguments.scale, "skipped": str(reason)}), flush=True)
            continue
        all_passed = all_passed and verdict.passed
        verdicts[row] = verdict
        print(json.dumps(verdict.as_json()), flush=True)
    if arguments.write_doc:
        PAGE.write_text(with_table(PAGE.read_text(), verdicts, machine=describe_machine()))
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
