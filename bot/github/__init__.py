"""Everything that talks to GitHub. The only reader of GITHUB_* variables and the only importer of PyGithub."""
