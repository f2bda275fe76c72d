"""Finished trials of a sweep as rows, tables, figures and one page that answers a merchant."""
