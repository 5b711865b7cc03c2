"""The verbs that people type, by what they are for. Like cli, they print and exit."""
