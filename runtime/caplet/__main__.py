"""`python -m caplet` is the `caplet` command."""

from caplet.cli import command

if __name__ == "__main__":
    command()
