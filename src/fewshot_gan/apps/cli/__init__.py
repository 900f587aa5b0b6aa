"""`fewshot-gan`: the command line."""
