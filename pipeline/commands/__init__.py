"""The user's verbs beside the stages, one module a command: `python -m pipeline <command>`.

Every module has a docstring whose first line is its help, ``add_arguments(parser)``, and
``main(arguments) -> int``, the exit status. Commands compose the layers below; no stage imports a command.
"""
