"""Deployment: to a Hugging Face Space or Inference Endpoint, in a container, with Prometheus and Grafana."""
