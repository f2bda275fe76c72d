"""What the client's pages for people are built of: blocks, and how they are shown."""
