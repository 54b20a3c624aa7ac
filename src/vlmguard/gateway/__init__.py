"""An OpenAI-compatible server that puts a defence before any target."""
