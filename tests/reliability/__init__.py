"""Load, faults and hostile input against a real server process: what drives it, and what is expected of it.

A row is one claim about the server with its sizes, small for every change and full for `make test-long`. Running it
gives a `Verdict`. `benches/reliability.py` prints one as a JSON line; `test_rows.py` runs all of them small.
"""
