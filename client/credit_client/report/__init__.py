"""The privacy report of a holder, and a second reader of it."""
