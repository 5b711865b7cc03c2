"""Is there something new? Decisions only: no network, no disk but the watchlist and the files it names."""
