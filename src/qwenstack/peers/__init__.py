"""Our engine beside others on one machine: the same file, the same random prompts, in turns.

Knows engines only as driver processes (`benches/peers/`), which it starts, asks and stops; decides what is asked, and
makes records of the answers.
"""
