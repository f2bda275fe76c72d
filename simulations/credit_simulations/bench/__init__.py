"""Measurements of the system beside its peers; each prints the table that the documentation has."""
