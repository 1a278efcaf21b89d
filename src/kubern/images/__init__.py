"""Images without any registry: built from Debian packages, kept as an OCI image layout, served read-only to the nodes.

oci.py the format · recipes.py what the demo images are · build.py makes them · library.py keeps them · registry.py serves them.
"""
