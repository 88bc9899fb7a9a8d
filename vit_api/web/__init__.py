"""The HTTP side: from requests to the classifier, and from its answers to responses."""
