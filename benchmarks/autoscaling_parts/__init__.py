"""The parts of `benchmarks.autoscaling`: a Deployment, its autoscaler, Prometheus and HAProxy, on one machine."""
