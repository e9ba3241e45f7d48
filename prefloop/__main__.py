"""``python -m prefloop``: the command line."""

from prefloop.pipeline.commands.app import main

if __name__ == "__main__":
    main()
