"""Plain twins of minilib's loops: the same results, in the habits of released code.

Tests hold the library to them (`tests/bench/test_loops.py`, `tests/unlearning/`), and ``bench/``
times both. In each module the twins come first, and use none of the kernels that they are held
beside. ``build`` then makes a loop by its name, a twin or minilib's, of the same weights and rows:
``run(steps)`` does the first ``steps`` batches (None: all), and returns what it has computed.
"""
