"""`python -m fewshot_gan.cli`, and `app` for those who call it from Python: the command line of `apps.cli`."""

from .apps.cli.app import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
