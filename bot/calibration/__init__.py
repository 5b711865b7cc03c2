"""Local text and chat files -> fixed token blocks."""
