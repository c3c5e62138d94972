"""Errors that a user can act on.

Every message is one line that says where, what was found, what was expected and what to do next. The stage scripts
and console commands print it without a traceback and exit with ``exit_code``.
"""


class PipelineError(Exception):
    """Something outside the code is wrong: a file, a setting, a table. Base of all errors shown in one line."""

    exit_code = 1


class ParamsError(PipelineError):
    """params.yaml holds an unknown, missing or wrongly typed key."""


class ContractError(PipelineError):
    """The data contract itself (data/schema.yaml) is not valid."""


class DataError(PipelineError):
    """A data file or table cannot be used as it is."""
