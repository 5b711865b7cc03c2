"""The status page: a report in, the files of a static site out. No network and no disk but its own assets."""
