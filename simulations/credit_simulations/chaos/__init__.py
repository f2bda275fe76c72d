"""Runs under faults: real processes that are killed, lines that fail, a holder that lies.

What is counted afterwards comes from witnesses outside the two commands: a recorder at the
coordinator's door, the holders' ledger files, and arithmetic done anew.
"""
