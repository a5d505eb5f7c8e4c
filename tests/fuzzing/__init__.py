"""Random small programs, run with and without oneDNN: by `scripts/fuzz_programs.py`, and a few of them in the suite."""
