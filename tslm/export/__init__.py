"""A trained model for other people's programs."""
