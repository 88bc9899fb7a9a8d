"""The APIs that clients speak: this server's own, Hugging Face's, the Open Inference Protocol."""
