"""Long experiments, run by hand: `python -m tests.campaigns.NAME --help`. A short form of each one is a test."""
