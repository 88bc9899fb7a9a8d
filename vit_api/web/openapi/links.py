"""Where the API is described: `Link` headers of RFC 8631. Knows nothing of what the description says."""

from __future__ import annotations

DESCRIPTION_LINKS = (
    '<openapi.json>; rel="service-desc"; type="application/json", <docs>; rel="service-doc"; type="text/html"'
)
"""For paths without a second slash: the references are relative, for proxies that add a prefix."""
