"""The OpenAI-compatible server: settings, routes, engines, and the `grainserve` command."""
