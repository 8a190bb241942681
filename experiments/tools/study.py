"""The one place from which the studies take what is not theirs: errors, command lines, cores."""

from experiments.errors import UserError, library_errors, run, unknown
from experiments.options import Parser, setting, use_cores, whole

__all__ = ["Parser", "UserError", "library_errors", "run", "setting", "unknown", "use_cores", "whole"]
