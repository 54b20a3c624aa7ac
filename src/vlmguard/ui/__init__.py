"""The playground: a page that shows the guard at work."""
