"""A release as a service at the holder: records in, decisions out, over HTTP."""
