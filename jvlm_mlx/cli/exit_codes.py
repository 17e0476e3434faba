"""What commands say to the shell when they end. argparse itself ends with 2 for unknown flags."""

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
"""After Ctrl-C, as shells have it."""
