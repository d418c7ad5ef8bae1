"""A model behind an HTTP API that OpenAI's clients speak (extra: labkit[serve])."""
