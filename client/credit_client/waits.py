"""All the times that a holder waits for; how long a round lasts is in the contract alone.

What a heartbeat may take is common to both sides, in `credit_common.protocol`.
"""

JOIN_SECONDS = 15.0
"""How long the coordinator may take to answer a call that asks for no work."""
SLOWEST_BYTES_A_SECOND = 10_000
"""What a line must carry at least, for an answer to be given up as lost after its time."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
"""Between two attempts to connect; the wait doubles from the first to the longest, which is half of
the contract's grace time at most: who asks more rarely than a round waits for it misses the round.
"""
CONNECT_SECONDS = 2.0
"""How long TCP, TLS and HTTP/2's first frames may take: several round trips of a slow line."""
CLOSE_SECONDS = 2.0
"""How long a channel may take to close."""
PROBE_SECONDS = 5.0
"""How long each step of the search for why a coordinator cannot be reached may take."""
