"""Helpers for all packages: files, errors, checks, hashes. Imports no other part of fewshot_gan."""
