"""Model files, below the stages: no decisions, no network."""
