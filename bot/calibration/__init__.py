"""Text and chat files to blocks of tokens."""
