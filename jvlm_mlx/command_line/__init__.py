"""The terminal: one installed command, `jvlm`, with a subcommand for each verb."""
