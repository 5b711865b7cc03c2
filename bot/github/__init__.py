"""Everything about GitHub: matrices, attempts, issues, summaries. The only importer of PyGithub."""
