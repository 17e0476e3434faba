"""Fetches an image from the web."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

from ..errors import ImageError
from ..version import __version__
from .image_decoding import reason

TIMEOUT = 30.0
"""Seconds for the whole of a download, and for each answer of the server."""
MAX_BYTES = 128 * 2**20
"""Largest file that is fetched."""


def download(url: str, name: str) -> bytes:
    """Return what an http or https address holds; `name` is for messages.

    Raises:
        ImageError: it cannot be reached, answers with an error, is too large or too slow.
    """
    deadline = time.monotonic() + TIMEOUT
    data = bytearray()
    try:
        request = urllib.request.Request(
            _quoted(url), headers={"User-Agent": f"jvlm-mlx/{__version__}"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(2**20):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ImageError(f"{name} is larger than {MAX_BYTES // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise ImageError(f"{name} took longer than {TIMEOUT:.0f} seconds to download")
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{name} cannot be downloaded: HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, BaseException) else error
        raise ImageError(f"{name} cannot be downloaded: {reason(cause)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"{name} cannot be downloaded: {reason(error)}") from error
    return bytes(data)


def _quoted(url: str) -> str:
    """Escape spaces and other letters than ASCII in an address, as browsers do."""
    parts = urllib.parse.urlsplit(url)
    safe = "%/:=&?~+!$,;'@()*[]"
    return parts._replace(
        path=urllib.parse.quote(parts.path, safe), query=urllib.parse.quote(parts.query, safe)
    ).geturl()
