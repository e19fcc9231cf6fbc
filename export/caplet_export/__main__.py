"""`python -m caplet_export` is the `caplet-export` command."""

from caplet_export.cli import command

if __name__ == "__main__":
    command()
