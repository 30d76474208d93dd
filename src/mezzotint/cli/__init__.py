"""The command line: parse, call, print. Nothing else prints.

    app        the commands by name, and `main`
    options    the options, which mean the same in every command
    output     tables, JSON, progress bars, and the one line of every error
    import_, quantize, sample, compare, ...    one command each

Nothing heavy is imported before a command runs, so that `mezzotint --help` answers at once.
"""

from mezzotint.cli.app import app, main

__all__ = ["app", "main"]
