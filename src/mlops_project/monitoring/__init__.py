"""Watching what the service sees. No stage and no other room imports this one, and it imports no service."""
