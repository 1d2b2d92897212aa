"""Bad input: a list of cases, and one way to put each through the index, the units of work, the receipts and the ledger, without Ray.

tests/preprocess/test_bad_*.py check what becomes of each. The table in docs/reliability.md is made by

    python -m tests.bad_input > table.md      (from the root of the checkout)
"""
