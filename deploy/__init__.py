"""Deployment: to a Hugging Face Space, in a container, with Prometheus and Grafana."""
