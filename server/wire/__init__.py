"""The requests that the server reads: OpenAI's shapes, plus `steering`."""
