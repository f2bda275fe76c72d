"""Scoring at the holder: a release and a file of records in, a file of scores out."""
