"""The command ``vlmguard``: one thin module a command."""
