"""Routes for OpenAI's clients: `/v1/moderations` and `/v1/embeddings`."""
