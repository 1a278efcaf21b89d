"""One file for each thing the command line does; cli.py parses and calls these. They print, and return exit codes."""
