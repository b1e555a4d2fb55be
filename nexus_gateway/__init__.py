"""Nexus Gateway: one OpenAI-compatible API in front of many provider keys."""

__version__ = "1.0.0"
