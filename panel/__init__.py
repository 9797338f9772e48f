"""The read-only web panel over the project's files."""
