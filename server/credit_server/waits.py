"""All the times that the coordinator waits for beside the contract's.

How long a round waits for its holders is in the contract alone, `answer_seconds` for those who are
connected and `grace_seconds` for those who are gone (see `grid`); what a heartbeat may take is
common to both sides, in `credit_common.protocol`.
"""

RECHECK_SECONDS = 2.0
"""How soon a revocation or expiry reaches a stream that is open."""
ATTEMPTS = 3
"""How often a round asks that has too few answers, while others come back in the grace time."""
CLOSE_SECONDS = 1.0
"""What calls in flight are given when the service stops."""
