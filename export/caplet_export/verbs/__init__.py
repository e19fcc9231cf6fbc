"""The verbs of `caplet-export`, one module each: `HELP`, `add_arguments(parser)`, `run(arguments) -> exit status`."""
