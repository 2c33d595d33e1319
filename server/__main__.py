"""`python -m server`: the `grainserve` command."""

from server.cli import main

if __name__ == "__main__":
    main()
