"""Holders that lie, in simulation alone: what they do to the model under each aggregation."""
