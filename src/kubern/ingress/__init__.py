"""Ingress: HTTP from outside to Services by host and path. routes.py decides, render.py writes nginx's configuration, controller.py joins them."""
