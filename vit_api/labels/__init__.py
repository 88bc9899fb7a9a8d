"""What an operator decides about labels: thresholds and categories."""
