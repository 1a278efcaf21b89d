"""kubern: Kubernetes in Python. ARCHITECTURE.md leads through the house."""

VERSION = "0.1.0"
KUBERNETES_VERSION = "v1.36.2"  # the API that is served; GET /version reports it
