"""The terminal: option groups, progress, tables, charts, and helpers of each subcommand."""
