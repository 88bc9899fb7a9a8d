"""Which requests are let in: API keys, rate limits and cross-origin rules, as HTTP shows them."""
