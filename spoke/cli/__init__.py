"""The command line: a file per verb group. Heavy imports stand inside the commands, so that ``--help`` is quick."""
