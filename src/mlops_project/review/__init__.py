"""Review of a change: what differs between two revisions, whether the difference is real, and whether it may go in."""
