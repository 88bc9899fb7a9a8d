"""Which requests are admitted: API keys, rate limits and CORS, on the HTTP side."""
