"""Wire formats that several rooms speak: HTTP/1.1 with upgrades, WebSocket, SPDY/3.1, and the channel protocols over them.

Knows nothing of Kubernetes objects. Imports kubern.model.request only.
"""
