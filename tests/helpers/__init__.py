"""Shared by several test files: tiny networks, reference functions, servers, hostile files."""
