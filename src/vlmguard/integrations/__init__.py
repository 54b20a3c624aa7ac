"""The guard inside other people's servers."""
