"""The artifact in inference engines, before it is published: their environments, and what their answers show."""
