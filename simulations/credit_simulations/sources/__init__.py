"""Public data sets, a module each: where the raw bytes come from, and how they become a frame."""
