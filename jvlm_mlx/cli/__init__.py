"""The terminal: option groups, progress, tables, charts, and the parts of each subcommand."""
