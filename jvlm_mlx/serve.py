"""Serve a model to other programs: an OpenAI-compatible API, and a page to drop an image on.

Every flag may also be an environment variable: JVLM_MAX_QUEUE is --max-queue, and so on.
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cli.arguments import (
    SWITCHES,
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    given_options,
    limit_mlx_cache,
    model_options,
    size,
)
from .cli.main import EXIT_ERROR, EXIT_OK
from .config.json_file import quoted
from .errors import RequestError
from .files import local_path
from .generation.options import GenerationOptions

_PREFIX = "JVLM_"
_SWITCHES = ("allow_image_urls", "quiet")
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand; their defaults may be environment variables."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another than a"
                        " loopback address needs a key")  # fmt: skip
    parser.add_argument("--port", type=int, default=8080, help="0 for any free one")
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="that clients must send; may be repeated, and nothing that is cached for one key is"
        " used for another",
    )  # fmt: skip
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="what clients call the model; else jina-vlm"
    )
    parser.add_argument(
        "--max-queue", type=int, default=16, metavar="REQUESTS", help="that wait; more are refused"
    )
    parser.add_argument(
        "--max-concurrent", type=int, default=8, metavar="REQUESTS", help="answered together"
    )
    parser.add_argument(
        "--max-body", type=size, default="64MiB", metavar="SIZE", help="largest request"
    )
    parser.add_argument(
        "--allow-image-urls", action="store_true", help="fetch images from public web addresses"
    )
    parser.add_argument(
        "--allow-image-folder", type=Path, metavar="DIR",
        help="folder whose files may be named by file: addresses",
    )  # fmt: skip
    parser.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN",
        help="web page, like https://chat.example, that may ask; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--grace-seconds", type=int, default=20, metavar="SECONDS",
        help="for answers under way, once the server is asked to stop",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="log no requests")
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)
    parser.set_defaults(**_from_environment(os.environ))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return defaults by names of flags; argparse reads texts as if they were arguments."""
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(_PREFIX):
            continue
        flag = name.removeprefix(_PREFIX).lower()
        if flag in ("cors_origin", "stop", "api_key"):
            found[flag] = [one for one in value.split(",") if one]
        elif value:
            found[flag] = value
    return found


def _switch(name: str, value: bool | str) -> bool:
    """Return a switch that may come from the environment.

    Raises:
        RequestError: it is neither on nor off.
    """
    if isinstance(value, str) and value.lower() not in (*_ON, *_OFF):
        raise RequestError(f"{_PREFIX}{name.upper()} is {quoted(value)}; expected true or false")
    return value.lower() in _ON if isinstance(value, str) else value


def run(arguments: argparse.Namespace) -> int:
    """Serve until the process is asked to stop, and return the exit code."""
    try:
        from .checkpoint.loader import load
        from .processing.image_formats import silence_libtiff
        from .serving.app import make_app
        from .serving.connection import Server
        from .serving.guard import Guard
        from .serving.image_policy import ImagePolicy
        from .serving.service import Service, ServiceOptions
    except ModuleNotFoundError as error:
        raise RequestError(
            f"the server needs {error.name}: pip install 'jvlm-mlx[server]'"
        ) from None
    for name in ("max_queue", "max_concurrent", "max_body", "grace_seconds"):
        if getattr(arguments, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise RequestError(f"{flag} is {getattr(arguments, name)}; it must be at least 1")
    for name in (*_SWITCHES, *SWITCHES):
        if hasattr(arguments, name):
            setattr(arguments, name, _switch(name, getattr(arguments, name)))
    limit_mlx_cache(arguments)
    given = given_options(arguments)
    options = GenerationOptions.of(given, {})  # refuses what makes no sense
    if not all(arguments.api_key):
        raise RequestError("--api-key: an empty key protects nothing; leave it out")
    guard = Guard.for_address(
        arguments.host, tuple(arguments.api_key), tuple(arguments.cors_origin), arguments.max_body
    )
    folder = arguments.allow_image_folder
    if folder is not None:
        folder = local_path(folder, RequestError)
        if not folder.is_dir():
            raise RequestError(f"--allow-image-folder: there is no folder {folder}")
    service = Service(
        ServiceOptions(
            served_name=arguments.served_model_name or "jina-vlm",
            defaults=given,
            policy=ImagePolicy(allow_urls=arguments.allow_image_urls, folder=folder),
            cache_bytes=arguments.cache_size,
            max_concurrent=arguments.max_concurrent,
            max_queue=arguments.max_queue,
            max_memory=options.max_memory,
            wired_limit=options.wired_limit,
        ),
        lambda progress: load(
            arguments.model, **model_options(arguments), progress=progress, show_progress=False
        ),
    )
    silence_libtiff()
    with _listen(arguments.host, arguments.port) as listener:
        host, port = listener.getsockname()[:2]
        print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)
        service.start()
        server = Server(
            make_app(service, guard),
            quiet=arguments.quiet,
            stop=lambda: service.stop(arguments.grace_seconds),
            grace_seconds=arguments.grace_seconds,
        )
        server.run(sockets=[listener])
    if not server.force_exit:
        service.wait_until_stopped()
    if service.error is not None:
        print(f"error: {service.error}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        RequestError: the address is taken or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port"
        ) from None
    return listener


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("serve"))
