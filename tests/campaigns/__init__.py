"""Long searches for mistakes, run by hand: `python -m tests.campaigns.NAME --help`; a short form of each is a test."""
